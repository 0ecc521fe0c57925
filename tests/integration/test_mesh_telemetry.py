"""What operators can see of a call, and what they must not: one trace, one request id, no word of a user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.servers.chromium import chromium
from tests.servers.mesh import free_port, running_mesh
from tests.servers.model_mesh import ModelMesh
from tests.servers.otlp import Collector, Span, collecting
from tests.servers.paced_model import paced_model
from tests.servers.transports import Transports, outcome, take, turn
from weft import Weft
from weft.v1.chat_pb2 import ConverseRequest
from weft.v1.common_pb2 import Message

# How `Transports` calls them, and how metrics and logs do.
TRANSPORTS = {"rest": "rest", "grpc": "grpc", "web": "grpc-web", "converse": "grpc", "ws": "websocket"}
RETRIEVAL = ("retrieval", "weft.v1.RetrievalService/Search")
MODELS = ("models", "weft.v1.ModelService/Generate")
PATHS = {
    "rest": "/api/v1/chat/stream",
    "grpc": "/weft.v1.ChatService/StreamChat",
    "web": "/weft.v1.ChatService/StreamChat",
    "converse": "/weft.v1.ChatService/Converse",
    "ws": "/api/v1/chat/ws",
}
# What a user says: as a word of its own, so that an index finds it.
SAID = "Zwiebelquark"
IN_CHINESE = "洋葱酸奶"
# What a client's program says of itself: Envoy's spans have some of it, no log has.
IN_A_HEADER = "Quarkzwiebel"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def told(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelMesh]:
    """Every process on its own, so that a trace goes from one to the next; all of them say all they can."""
    with paced_model() as model:
        environment = {
            "WEFT_ENDPOINTS": model.endpoints(),
            "WEFT_OTLP_ENDPOINT": collector.endpoint,
            "WEFT_LOG_LEVEL": "debug",
            "WEFT_JOBS_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        }
        with running_mesh(tmp_path_factory.mktemp("told"), "split", environment) as mesh:
            yield ModelMesh(mesh, model, "split")


def calls_of(transport: str) -> list[tuple[str, str]]:
    """The spans of a turn from its client to the model, each the parent of the next."""
    many = transport in ("converse", "ws")
    rpc = f"weft.v1.ChatService/{'Converse' if many else 'StreamChat'}"
    return [("chat", rpc), *([("chat", f"{rpc}.turn")] if many else [])]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_turn_is_one_trace_and_one_request_id(
    told: ModelMesh, collector: Collector, transport: str
) -> None:
    asked = turn(f"What opens at six over {transport}?", model_id="story", resumable=True)
    trace_id, client = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"x-request-id": asked.request_id, "traceparent": f"00-{trace_id}-{client}-01"}
    async with told.client("traced", headers=headers) as wire:
        events, reason = await outcome(getattr(wire, transport)(asked))
    assert (events[-1].type, reason) == ("done", "")
    calls = calls_of(transport)
    spans = await asyncio.to_thread(collector.wait_for, trace_id, _holds([*calls, RETRIEVAL, MODELS]))
    assert_unbroken(spans, client, calls)
    request = told.model.requests(asked.messages[0].content)[-1]
    assert request.headers["traceparent"] == f"00-{trace_id}-{one(spans, MODELS).span_id}-01"
    assert request.headers["x-request-id"] == asked.request_id
    assert {span.attributes["weft.request_id"] for span in spans} == {asked.request_id}
    assert {span.attributes["url.path"] for span in spans if span.service == "weft-edge"} == {
        PATHS[transport]
    }
    await assert_logged(told, asked.request_id, ("chat", "retrieval", "models"), TRANSPORTS[transport])


async def test_turns_of_one_stream_have_their_own_request_ids(told: ModelMesh, collector: Collector) -> None:
    asked = [turn(f"What opens at six, {number}?", model_id="story") for number in range(2)]
    trace_id = secrets.token_hex(16)
    headers = {"x-request-id": "the-stream", "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    async with told.client("traced", headers=headers) as wire:
        stream = await wire.converse(asked[0])
        assert (await take(stream))[-1].type == "done"
        await stream.call.write(ConverseRequest(turn=asked[1]))
        assert (await take(stream))[-1].type == "done"
        await stream.cut()
    ids = {request.request_id for request in asked}
    spans = await asyncio.to_thread(collector.wait_for, trace_id, lambda spans: len(spans) == 9)
    for name in ("weft.v1.ChatService/Converse.turn", RETRIEVAL[1], MODELS[1]):
        assert {span.attributes["weft.request_id"] for span in spans if span.name == name} == ids
    for request in asked:
        (turned,) = [
            span for span in spans if span.name.endswith(".turn") and request.request_id in span.text
        ]
        below = [span for span in spans if span.parent_id == turned.span_id]
        assert {span.attributes["weft.request_id"] for span in below} == {request.request_id}
        assert len(below) == 2


async def test_a_question_of_the_sdk_is_a_trace_by_itself(told: ModelMesh, collector: Collector) -> None:
    request_id = secrets.token_hex(16)
    async with Weft(told.mesh.address, token=told.token("traced")) as weft:
        await weft.chat("", "What opens at six by itself?", model_id="story", request_id=request_id).text()
    await assert_traced(collector, request_id)


async def test_a_question_of_the_page_is_a_trace_by_itself(told: ModelMesh, collector: Collector) -> None:
    request_id = secrets.token_hex(16)
    asked = turn("What opens at six in a page?", model_id="story")
    asked.request_id = request_id
    with chromium(told.mesh.url) as browser:
        async with browser.client(told.token("traced")) as tab:
            events = await take(tab.call(asked, {"x-request-id": request_id}))
    assert events[-1].type == "done"
    await assert_traced(collector, request_id)
    await assert_logged(told, request_id, ("chat", "retrieval", "models"), "grpc-web")


async def assert_traced(collector: Collector, trace_id: str) -> None:
    """The client's span is told by nobody, but all others are beneath it."""
    calls = calls_of("grpc")
    spans = await asyncio.to_thread(collector.wait_for, trace_id, _holds([*calls, RETRIEVAL, MODELS]))
    (root,) = {span.parent_id for span in spans} - {span.span_id for span in spans}
    assert_unbroken(spans, root, calls)


async def test_logs_and_spans_hold_no_word_of_a_user(told: ModelMesh, collector: Collector) -> None:
    """All that a user can say is said, over every transport and in every wrong way, at the level debug."""
    async with told.client("secretive") as wire:
        await say_it_in_documents(wire)
        for transport in TRANSPORTS:
            for model_id in ("extractive", "story", "fail", "garbage", "cut", SAID):
                asked = turn(f"Who ate the {SAID} {IN_CHINESE}?", model_id=model_id)
                asked.messages.insert(0, Message(role="user", content=f"I had {SAID} before."))
                with contextlib.suppress(AssertionError, grpc.aio.AioRpcError):
                    await outcome(getattr(wire, transport)(asked))
        await say_it_wrongly(wire)
        await say_it_on_a_socket(told, wire)
        last = turn("The end", model_id="story")
        last.request_id = f"the-end-{secrets.token_hex(4)}"
        trace_id = secrets.token_hex(16)
        wire.http.headers["x-request-id"] = last.request_id
        wire.http.headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        assert (await outcome(wire.rest(last)))[0][-1].type == "done"
        token = wire.token
    await assert_logged(told, last.request_id, ("chat", "retrieval", "models"), "rest")
    # Spans come in their order: those of before have come.
    await asyncio.to_thread(collector.wait_for, trace_id, _holds([*calls_of("rest"), RETRIEVAL, MODELS]))
    root = told.mesh.data.parent
    files = [*root.glob("*.log"), *told.mesh.data.glob("logs/*"), *told.mesh.data.glob("envoy/*.log")]
    assert {"chat.log", "jobs.log", "knowledge.log", "edge.log", "access.log", "envoy.log"} <= {
        file.name for file in files
    }
    texts = {file.name: file.read_text("utf-8") for file in files}
    texts["spans"] = "\n".join(span.text for span in collector.spans)
    for secret in (SAID, SAID.lower(), quote(IN_CHINESE), IN_CHINESE, "Piece 1", token, token.split(".")[2]):
        for name, text in texts.items():
            where = text.find(secret)
            assert where == -1, (name, secret, text[max(0, where - 200) : where + 100])
    assert all(IN_A_HEADER not in texts[file.name] for file in files)
    assert_json(texts)


async def test_the_job_process_shows_its_work(told: ModelMesh) -> None:
    url = f"http://{told.mesh.environment['WEFT_JOBS_METRICS_ADDRESS']}"
    async with told.client("measured") as wire, httpx.AsyncClient() as http:
        await say_it_in_documents(wire)
        ready = await http.get(f"{url}/ready")
        assert (ready.status_code, ready.text) == (200, "ready\n")
        async with asyncio.timeout(20):
            while shown(metrics := (await http.get(f"{url}/metrics")).text, 'weft_jobs_open{kind="index"}'):
                await asyncio.sleep(0.1)
    assert shown(metrics, 'weft_job_step_seconds_count{step="store"}') >= 1
    assert shown(metrics, 'weft_backend_up{backend="records"}') == 1
    for name in ("records_writes", "records_reads", "embeddings"):
        assert shown(metrics, f'weft_queue_waiting{{queue="{name}"}}') >= 0
    assert shown(metrics, "weft_loop_lag_seconds_count") > 0
    assert shown(metrics, "process_resident_memory_bytes") > 0
    assert shown(metrics, "process_open_fds") > 0


def shown(metrics: str, name: str) -> float:
    """The value of a series in what `/metrics` gives."""
    return float(next(line.split()[-1] for line in metrics.splitlines() if line.startswith(f"{name} ")))


async def say_it_in_documents(wire: Transports) -> None:
    said = f"# {SAID}\n\nThe cook ate the {SAID} at nine. 厨师九点吃了{IN_CHINESE}。\n".encode()
    wrong = [("note.exe", said), ("broken.pdf", b"%PDF-1.4 " + said), ("odd.md", b"\xff\x00\xd8" + said)]
    files = [("file", (f"{SAID}-{name}", content)) for name, content in [("note.md", said), *wrong]]
    answer = await wire.http.post("/api/v1/knowledge/upload", data={"dataset_id": "ds"}, files=files)
    assert answer.status_code == 200, answer.text
    await wire.http.post("/api/v1/knowledge/datasets", json={"dataset_id": "named", "name": SAID})
    await wire.http.post("/api/v1/knowledge/index", json={"dataset_id": "ds"})
    async with asyncio.timeout(60):
        while (await wire.http.get("/api/v1/knowledge/status/ds")).json()["status"] != "ready":
            await asyncio.sleep(0.1)
    answer = await wire.http.post("/api/v1/search", json={"query": f"who ate {SAID}"})
    assert SAID in answer.text


async def say_it_wrongly(wire: Transports) -> None:
    asked = {"role": "user", "content": SAID}
    for path, body in (
        ("chat/stream", {"messages": [{"role": SAID, "content": SAID}], SAID: SAID}),
        ("chat/stream", {"messages": [{"role": "user", "content": SAID * 8_000}]}),
        ("chat/stream", {"conversation_id": f"{SAID} ", "messages": [asked]}),
        ("chat/stream", {"messages": SAID}),
        ("chat/rate", {"conversation_id": "none", "request_id": "r", "rating": SAID, "comment": SAID}),
        ("search", {"query": SAID, "search_type": SAID}),
        ("search", {"query": SAID, "filters": {"date_range": {"start": SAID}}}),
        ("models/generate", {"messages": [asked], "model_id": SAID}),
    ):
        await wire.http.post(f"/api/v1/{path}", json=body)
    await wire.http.post("/api/v1/chat/stream", content=f'{{"messages": "{SAID}"')
    form = {"content-type": f"multipart/form-data; boundary={SAID}"}
    await wire.http.post("/api/v1/knowledge/upload", content=SAID, headers=form)
    await wire.http.get(f"/api/v1/models?access_token={SAID}&{wire.token}")
    await wire.http.get("/api/v1/models", headers={"authorization": f"Bearer {SAID}"})
    for name in ("content-type", "x-tenant-id", "cookie", "user-agent", "referer", "grpc-timeout"):
        await wire.http.get("/api/v1/models", headers={name: IN_A_HEADER})
    with contextlib.suppress(grpc.aio.AioRpcError):
        await wire.chat.StreamChat(turn(SAID * 8_000), metadata=wire.metadata).read()


async def say_it_on_a_socket(told: ModelMesh, wire: Transports) -> None:
    url = f"ws://{told.mesh.address}/api/v1/chat/ws"
    for first in ({"type": "start", "token": SAID}, {"type": SAID}, {"type": "start", "token": wire.token}):
        async with connect(url) as socket:
            await socket.send(json.dumps(first))
            for message in (
                f"{{{SAID}",
                json.dumps({"type": SAID}),
                json.dumps({"type": "turn", SAID: SAID}),
            ):
                with contextlib.suppress(ConnectionClosed):
                    await socket.send(message)
                    await socket.recv()
    with contextlib.suppress(InvalidStatus):
        await connect(f"{url}?token={SAID}")


def assert_json(texts: dict[str, str]) -> None:
    """Every line of ours is an object; Envoy's own words and the spans are not ours."""
    for name, text in texts.items():
        if name not in ("envoy.log", "spans"):
            for line in text.splitlines():
                assert isinstance(json.loads(line), dict), (name, line)


def _holds(wanted: list[tuple[str, str]]) -> Any:
    def holds(spans: list[Span]) -> bool:
        have = [(span.service, span.name) for span in spans]
        # Envoy's own two: of the client's request, and of its request to chat.
        return all(have.count(each) == 1 for each in wanted) and sum(s == "weft-edge" for s, _ in have) == 2

    return holds


def one(spans: list[Span], which: tuple[str, str]) -> Span:
    (span,) = [span for span in spans if (span.service, span.name) == which]
    return span


def assert_unbroken(spans: list[Span], client: str, calls: list[tuple[str, str]]) -> None:
    """From the client's span through Envoy's two to chat's, and from there to retrieval and models."""
    by_parent = {span.parent_id: span for span in spans if span.service == "weft-edge"}
    edge = by_parent[client]
    parent = by_parent[edge.span_id].span_id
    for call in calls:
        assert one(spans, call).parent_id == parent
        parent = one(spans, call).span_id
    assert one(spans, RETRIEVAL).parent_id == parent
    assert one(spans, MODELS).parent_id == parent


async def assert_logged(told: ModelMesh, request_id: str, services: tuple[str, ...], transport: str) -> None:
    """The id is in a line of each service's log and of Envoy's, which comes within a second."""
    logs = told.mesh.data.parent
    files = {name: logs / f"{name}.log" for name in services}
    files["access"] = told.mesh.data / "logs" / "access.log"
    async with asyncio.timeout(20):
        while not all(request_id in file.read_text("utf-8") for file in files.values()):
            await asyncio.sleep(0.1)
    lines = [json.loads(line) for line in files["chat"].read_text("utf-8").splitlines() if request_id in line]
    (called,) = [line for line in lines if line["event"] == "rpc"]
    assert called["transport"] == transport

"""REST and SSE through the real Envoy: the bytes, the errors, the ids, deadlines and uploads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import psutil
import pytest
import pytest_asyncio
import websockets

from tests.deploy.envoy_backend import Edge, bearer, running_edge, token, until
from weftd.envoy import Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAM = "/api/v1/chat/stream"


def question(text: str, **more: object) -> dict[str, object]:
    return {"conversation_id": "conv_1", "messages": [{"role": "user", "content": text}], **more}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def http(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with edge.http() as client:
        yield client


async def test_a_stream_is_server_sent_events_to_the_byte(http: httpx.AsyncClient) -> None:
    answer = await http.post(STREAM, json=question("two"))
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.content.decode() == (
        'data: {"type":"delta","content":"RAG（检索","seq":1}\n\n'
        'data: {"type":"done","usage":{"prompt_tokens":0,"completion_tokens":2,"total_tokens":2},"seq":2}\n\n'
    )


async def test_an_event_comes_before_the_next_is_made(edge: Edge, http: httpx.AsyncClient) -> None:
    async with http.stream("POST", STREAM, json=question("hold")) as answer:
        first = await anext(answer.aiter_text())
    assert first == 'data: {"type":"delta","content":"RAG（检索","seq":1}\n\n'
    await edge.seen.ended.get()


async def test_a_client_that_leaves_ends_the_call_behind_at_once(edge: Edge, http: httpx.AsyncClient) -> None:
    took_s = []
    for _ in range(5):  # the quickest counts: a busy machine adds to each
        async with http.stream("POST", STREAM, json=question("hold")) as answer:
            await anext(answer.aiter_text())
            left_at = time.monotonic()
        async with asyncio.timeout(5):
            took_s.append(await edge.seen.ended.get() - left_at)
    assert min(took_s) < 0.05


async def test_an_error_before_the_stream_is_a_status_with_its_reason(http: httpx.AsyncClient) -> None:
    answer = await http.post(STREAM, json=question("refuse"))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/json")
    assert answer.json() == {
        "code": 9,
        "message": "A turn is running. Wait for it.",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "TURN_RUNNING",
                "domain": "weft",
            }
        ],
    }


@pytest.mark.parametrize("body", [b"{", b"[1]", b'{"top_k": "many"}', b"\xff\xfe", b""])
async def test_a_body_that_is_no_json_is_a_400(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/api/v1/search", content=body)
    if body == b"":  # an empty message: for the service to judge
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert answer.json()["code"] == 3
    assert answer.json()["message"].startswith("The request is malformed.")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/nothing"),
        ("GET", STREAM),
        ("PUT", "/api/v1/conversations"),
        ("GET", "/api/v2/models"),
    ],
)
async def test_an_unknown_call_is_a_404_in_json(http: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await http.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["code"] == 12
    assert "no such call" in answer.json()["message"]


async def test_query_parameters_reach_the_service_and_unknown_ones_are_refused(
    http: httpx.AsyncClient,
) -> None:
    assert (await http.get("/api/v1/conversations?page_size=3")).json() == {"next_page_token": "3"}
    assert (await http.get("/api/v1/conversations?size=3")).status_code == 400


async def test_a_large_answer_comes_whole(http: httpx.AsyncClient) -> None:
    text = "长" * 1_000_000
    answer = await http.post("/api/v1/search", json={"query": text})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["content"] == text


async def test_a_body_over_the_limit_is_refused_at_the_edge(edge: Edge, http: httpx.AsyncClient) -> None:
    searches = edge.seen.searches
    answer = await http.post("/api/v1/search", json={"query": "x" * (edge.config.body_limit_bytes + 1)})
    assert answer.status_code == 413
    assert answer.json()["details"][0]["reason"] == "INVALID_FIELD"
    assert edge.seen.searches == searches


async def test_headers_over_the_limit_are_refused_at_the_edge(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/v1/models", headers={"x-large": "x" * (70 << 10)})
    assert answer.status_code == 431
    assert answer.json()["message"].startswith("The headers are too large.")


@pytest.mark.parametrize("request_id", ["turn-1:a.b@c", "f82a6a2a-3ad1-4f79-8daa-da43041c0fdd"])
async def test_the_clients_request_id_is_kept_to_the_letter(
    edge: Edge, http: httpx.AsyncClient, request_id: str
) -> None:
    answer = await http.post("/api/v1/search", json={"query": "x"}, headers={"x-request-id": request_id})
    assert answer.headers["x-request-id"] == request_id
    assert edge.seen.metadata[-1]["x-request-id"] == request_id


async def test_a_missing_request_id_is_made_and_told(edge: Edge, http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/v1/search", json={"query": "x"})
    assert answer.headers["x-request-id"] == edge.seen.metadata[-1]["x-request-id"] != ""
    refused = await http.get("/api/v1/models", headers={"authorization": "", "x-request-id": "mine"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (401, "mine")


async def test_the_services_own_request_id_wins_in_the_answer(http: httpx.AsyncClient) -> None:
    answer = await http.post(STREAM, json=question("two", request_id="of-the-body"))
    assert answer.headers["x-request-id"] == "of-the-body"


async def test_a_deadline_of_a_rest_client_reaches_the_service(edge: Edge, http: httpx.AsyncClient) -> None:
    await http.post("/api/v1/search", json={"query": "x"}, headers={"grpc-timeout": "7S"})
    assert 6 < (edge.seen.time_left_s[-1] or 0) <= 7
    await http.post(STREAM, json=question("two"), headers={"grpc-timeout": "90S"})
    assert 89 < (edge.seen.time_left_s[-1] or 0) <= 90
    await http.post(STREAM, json=question("two"))
    assert edge.seen.time_left_s[-1] is None


@pytest.mark.parametrize("limit", ["soon", "-1S", "999999999S", "5", "1.5S"])
async def test_a_deadline_that_is_none_is_the_clients_mistake(http: httpx.AsyncClient, limit: str) -> None:
    for path in (STREAM, "/api/v1/search"):
        answer = await http.post(path, json=question("two"), headers={"grpc-timeout": limit})
        assert answer.status_code == 400
        assert answer.json()["code"] == 3
        assert "30S" in answer.json()["message"]


async def test_a_client_cannot_steer_the_edge_by_its_headers(edge: Edge, http: httpx.AsyncClient) -> None:
    steering = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-retry-on": "5xx", "x-envoy-max-retries": "9"}
    async with http.stream("POST", STREAM, json=question("hold"), headers=steering) as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_text())
    await edge.seen.ended.get()
    assert not set(steering) & set(edge.seen.metadata[-1])


async def test_readers_that_stop_reading_stop_their_own_answers_only(
    edge: Edge, http: httpx.AsyncClient
) -> None:
    readers = 24
    async with AsyncExitStack() as open_answers:
        for _ in range(readers):
            await open_answers.enter_async_context(http.stream("POST", STREAM, json=question("flood")))

        async def standing() -> bool:
            before = edge.seen.flooded_bytes
            await asyncio.sleep(0.2)
            return edge.seen.flooded_bytes == before

        await until(standing, True)
        assert edge.seen.flooded_bytes < readers * (8 << 20)
        async with edge.http() as other:
            answer = await other.post(STREAM, json=question("two"))
        assert answer.text.count("data: ") == 2


async def test_an_upload_of_50_mb_passes_in_pieces_with_flat_memory(
    edge: Edge, http: httpx.AsyncClient
) -> None:
    process = psutil.Process(edge.envoy.pid)
    size, peaks = 50 << 20, [process.memory_info().rss]
    before = edge.seen.uploaded_bytes

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield b"x" * (1 << 20)
            peaks.append(process.memory_info().rss)

    kind = "multipart/form-data; boundary=weft"
    answer = await http.post("/api/v1/knowledge/upload", content=body(), headers={"content-type": kind})
    assert answer.json() == {"dataset_id": "ds_1"}
    assert edge.seen.uploaded_bytes - before == size
    assert edge.seen.upload_content_type == kind
    assert edge.seen.largest_piece <= 1 << 20
    assert max(peaks) - peaks[0] < 20 << 20


async def test_a_websocket_passes_to_the_edges_own_server(edge: Edge) -> None:
    async def echo(socket: websockets.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        before = edge.config.edge
        await edge.changed(edge=(Endpoint("127.0.0.1", port),))
        try:
            async with websockets.connect(f"ws://{edge.address}/any", proxy=None) as socket:
                await socket.send("你好")
                assert await socket.recv() == "你好"
        finally:
            await edge.changed(edge=before)


async def test_paths_are_read_as_they_are_meant(http: httpx.AsyncClient) -> None:
    assert (await http.get("/api/v1/../../healthz")).text == "ok\n"
    refused = await http.get("/assets%2f..%2f..%2fapi/v1/models")
    assert refused.status_code == 400


async def test_the_page_health_and_nothing_else_need_no_token(http: httpx.AsyncClient) -> None:
    http.headers.pop("authorization")
    assert (await http.get("/healthz")).text == "ok\n"
    assert "page is not built" in (await http.get("/")).text
    assert (await http.post("/api/v1/dev/token")).json()["token"]
    for path in ("/api/v1/models", "/api/v1/dev/tokens", "/api/", "/weft.v1.ModelService/ListModels"):
        assert (await http.get(path)).status_code == 401, path


async def test_the_access_log_has_the_ids_and_no_secret(edge: Edge) -> None:
    secret = token(tenant="acme", sub="log")
    async with edge.http() as http:
        good = await http.post(
            "/api/v1/search", json={"query": "x"}, headers=bearer(secret, x_request_id="log-1")
        )
        bad = await http.get(
            f"/api/v1/models?access_token={secret}", headers={"authorization": "", "x-request-id": "log-2"}
        )
    assert (good.status_code, bad.status_code) == (200, 401)
    lines = {line["request_id"]: line for line in await edge.logged("log-1", "log-2")}
    assert lines["log-1"]["tenant"] == "acme"
    assert lines["log-1"]["path"] == "/api/v1/search"
    assert lines["log-1"]["rpc"] == "/weft.v1.RetrievalService/Search"
    assert (lines["log-1"]["status"], lines["log-1"]["grpc_status"]) == (200, "OK")
    assert (lines["log-2"]["path"], lines["log-2"]["status"]) == ("/api/v1/models", 401)
    assert secret not in edge.config.access_log.read_text()
    assert "access_token" not in edge.config.access_log.read_text()

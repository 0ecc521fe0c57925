"""A whole mesh with a language model of its own: turns from retrieved passages, and cancels of its loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_mesh_cancel import CASES, Try
from tests.servers.mesh import Mesh, running_mesh
from tests.servers.tiny_llm import llm_counts, llm_on_triton, need_llm, write_tiny_llm
from tests.servers.transports import take, text_of, transports, turn
from weft import Weft
from weft.v1 import models_pb2_grpc
from weft.v1.common_pb2 import Message
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest

# A few of each; bench/cancel_llm.py does 100.
CANCELS = 3
CASES_OF_TRANSPORTS = (
    "REST connection closed",
    "REST CancelTurn",
    "gRPC stub cancelled",
    "gRPC-Web aborted",
    "WebSocket interrupt",
    "WebSocket cut off",
)
# For one try on a machine whose cores are all busy.
STOPPED_WITHIN_S = 0.5
# What Triton shows of the counts is a tenth of a second old.
BEHIND_S = 0.3
TEXT = "The lighthouse of Brindlemere was built in 1874 by Odalys Finch. 灯塔由芬奇于一八七四年建成。"


@dataclass
class LlmMesh:
    """`metrics_url`: Triton's; empty where the model is in a process of the mesh."""

    mesh: Mesh
    metrics_url: str

    @property
    def provider(self) -> str:
        return "triton" if self.metrics_url else "local"


@contextlib.contextmanager
def running_llm_mesh(directory: Path, *, triton: bool) -> Iterator[LlmMesh]:
    need_llm()
    weights = write_tiny_llm(directory / "tiny")
    environment = {"WEFT_LLM": str(weights)}
    with contextlib.ExitStack() as stack:
        metrics_url = ""
        if triton:
            served = stack.enter_context(llm_on_triton(weights, directory / "triton", embedder=True))
            environment["WEFT_TRITON_URL"] = f"grpc://{served.address}"
            metrics_url = served.metrics_url
        mesh = stack.enter_context(running_mesh(directory, "one", environment))
        yield LlmMesh(mesh, metrics_url)


@pytest.fixture(scope="module", params=["process", "triton"])
def llm_mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlmMesh]:
    directory = tmp_path_factory.mktemp(f"llm-{request.param}")
    with running_llm_mesh(directory, triton=request.param == "triton") as running:
        yield running


@pytest.fixture
def client(llm_mesh: LlmMesh) -> Iterator[httpx.Client]:
    """Of a tenant who has one document."""
    headers = {"Authorization": f"Bearer {llm_mesh.mesh.token(f't-{uuid.uuid4().hex[:8]}')}"}
    with httpx.Client(base_url=llm_mesh.mesh.url, headers=headers, timeout=60) as session:
        files = [("file", ("lighthouse.md", TEXT.encode()))]
        session.post("/api/v1/knowledge/upload", data={"dataset_id": "d"}, files=files).raise_for_status()
        session.post("/api/v1/knowledge/index", json={"dataset_id": "d", "index_type": "vector"})
        deadline = time.monotonic() + 60
        while session.get("/api/v1/knowledge/status/d").json()["status"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield session


def asked_over_rest(client: httpx.Client, **more: Any) -> list[dict[str, Any]]:
    question = [{"role": "user", "content": "Who built the lighthouse of Brindlemere?"}]
    with client.stream("POST", "/api/v1/chat/stream", json={"messages": question, **more}) as answer:
        assert answer.status_code == 200
        return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]


def test_a_turn_is_answered_from_passages(llm_mesh: LlmMesh, client: httpx.Client) -> None:
    models = client.get("/api/v1/models").json()["models"]
    assert (models[0]["model_id"], models[0]["provider"]) == ("tiny", llm_mesh.provider)
    assert models[0]["can_continue"] and models[0]["default"]
    events = asked_over_rest(client)
    assert [event["type"] for event in events[-2:]] == ["refs", "done"]
    assert TEXT in events[-2]["references"][0]["content"]
    pieces = [event["content"] for event in events if event["type"] == "delta"]
    assert len(pieces) > 1 and "\ufffd" not in "".join(pieces)
    usage = events[-1]["usage"]
    # The instructions and the passage were read too: the question alone has some 40 tokens.
    assert usage["prompt_tokens"] > 150
    assert usage["completion_tokens"] == 1024


async def generated(llm_mesh: LlmMesh, request: GenerateRequest) -> list[GenerateEvent]:
    token = llm_mesh.mesh.token("direct")
    async with transports(llm_mesh.mesh.address, token) as wire:
        stub = models_pb2_grpc.ModelServiceStub(wire.channel)
        return [event async for event in stub.Generate(request, metadata=wire.metadata)]


async def test_what_was_asked_reaches_the_model(llm_mesh: LlmMesh) -> None:
    question = [Message(role="user", content="年假 how many days ahead?")]
    likeliest = GenerateRequest(messages=question, temperature=0, max_tokens=40)
    events = await generated(llm_mesh, likeliest)
    text = "".join(event.content for event in events)
    assert (events[-1].finish_reason, events[-1].usage.completion_tokens) == ("length", 40)
    assert events[-1].model_version == ("1" if llm_mesh.metrics_url else "")
    stop = text[12:18]
    stopped = await generated(llm_mesh, GenerateRequest(messages=question, temperature=0, stop=[stop]))
    assert "".join(event.content for event in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    narrow = GenerateRequest(messages=question, temperature=1, top_p=1e-6, max_tokens=40)
    assert "".join(event.content for event in await generated(llm_mesh, narrow)) == text
    rest = await generated(
        llm_mesh, GenerateRequest(messages=question, temperature=0, prefix=text, max_tokens=10)
    )
    assert rest[-1].usage.completion_tokens == 10
    assert not "".join(event.content for event in rest).startswith(text[:8])


@contextlib.asynccontextmanager
async def long_turns(llm_mesh: LlmMesh) -> AsyncIterator[Any]:
    """Makes turns of 1,024 tokens: some seconds."""
    token = llm_mesh.mesh.token(f"t-{uuid.uuid4().hex[:8]}")
    async with (
        transports(llm_mesh.mesh.address, token) as wire,
        Weft(llm_mesh.mesh.address, token=token) as weft,
    ):
        yield lambda: Try(wire, weft, turn(f"Never end {uuid.uuid4().hex}", model_id="tiny"))


@pytest.mark.parametrize("name", CASES_OF_TRANSPORTS)
async def test_a_cancel_stops_the_models_loop(llm_mesh: LlmMesh, name: str) -> None:
    if not llm_mesh.metrics_url:
        pytest.skip("The counter of the model is among Triton's metrics; in process: contract tests.")
    unix_s = time.time() - time.monotonic()
    async with long_turns(llm_mesh) as another:
        await asyncio.sleep(BEHIND_S)
        before = await counts(llm_mesh)
        for number in range(1, CANCELS + 1):
            acted_s = unix_s + await CASES[name](another())
            after = await stopped_since(llm_mesh, acted_s)
            assert after["cancelled"] == before["cancelled"] + number
            assert after["stopped_at"] - acted_s < STOPPED_WITHIN_S
            await asyncio.sleep(BEHIND_S)
            later = await counts(llm_mesh)
            assert (later["tokens"], later["late_tokens"], later["open"]) == (after["tokens"], 0, 0)


async def test_the_slots_of_those_who_left_serve_the_next(llm_mesh: LlmMesh) -> None:
    async with long_turns(llm_mesh) as another:
        for _ in range(3):
            many = [another() for _ in range(16)]
            await asyncio.gather(*(CASES["gRPC stub cancelled"](each) for each in many))
        this = another()
        events = await take(await this.wire.grpc(this.asked))
    assert events[-1].type == "done"
    assert text_of(events)


async def counts(llm_mesh: LlmMesh) -> dict[str, float]:
    return await asyncio.to_thread(llm_counts, llm_mesh.metrics_url)


async def stopped_since(llm_mesh: LlmMesh, acted_s: float) -> dict[str, float]:
    """The model's counts once a cancelled text has left its batch."""
    async with asyncio.timeout(20):
        while (counted := await counts(llm_mesh))["stopped_at"] < acted_s:
            await asyncio.sleep(0.02)
    return counted

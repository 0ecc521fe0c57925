"""What operators can see of a call, and what they must not: one trace, one request id, no word of a user."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.mesh import running_mesh
from tests.servers.model_mesh import ModelMesh
from tests.servers.otlp import Collector, Span, collecting
from tests.servers.paced_model import paced_model
from tests.servers.transports import outcome, turn
from weft import Weft

TRANSPORTS = ("rest", "grpc", "web", "converse", "ws")
RETRIEVAL = ("retrieval", "weft.v1.RetrievalService/Search")
MODELS = ("models", "weft.v1.ModelService/Generate")


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
    await assert_logged(told, asked.request_id, ("chat", "retrieval", "models"))


async def test_a_question_of_the_sdk_is_a_trace_by_itself(told: ModelMesh, collector: Collector) -> None:
    request_id = secrets.token_hex(16)
    async with Weft(told.mesh.address, token=told.token("traced")) as weft:
        await weft.chat("", "What opens at six by itself?", model_id="story", request_id=request_id).text()
    calls = calls_of("grpc")
    spans = await asyncio.to_thread(collector.wait_for, request_id, _holds([*calls, RETRIEVAL, MODELS]))
    (root,) = {span.parent_id for span in spans} - {span.span_id for span in spans}
    assert_unbroken(spans, root, calls)


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


async def assert_logged(told: ModelMesh, request_id: str, services: tuple[str, ...]) -> None:
    """The id is in a line of each service's log and of Envoy's, which comes within a second."""
    logs = told.mesh.data.parent
    files = {name: logs / f"{name}.log" for name in services}
    files["access"] = told.mesh.data / "logs" / "access.log"
    async with asyncio.timeout(20):
        while missing := [name for name, file in files.items() if request_id not in file.read_text("utf-8")]:
            await asyncio.sleep(0.1)
    assert not missing

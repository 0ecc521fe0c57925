"""ModelService on a real server: checks, errors, order of events, and that a left call stops its model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from weft.v1 import models_pb2_grpc
from weft.v1.common_pb2 import Message, Reference
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest, ListModelsRequest
from weftd.keys import ensure_keys
from weftd.models.extractive.model import ExtractiveModel
from weftd.models.port import ModelRegistry
from weftd.models.service import ModelService
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server


class Endless:
    """Writes until it is closed; `made` counts its events."""

    model_id = "endless"
    provider = "test"
    can_continue = False

    def __init__(self) -> None:
        self.made = 0
        self.closed = asyncio.Event()
        self.closed_at = 0.0

    async def close(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        try:
            while True:
                self.made += 1
                yield GenerateEvent(type="delta", content="x")
                await asyncio.sleep(0.001)
        finally:
            self.closed_at = time.perf_counter()
            self.closed.set()


@dataclass
class Room:
    """The service, its model, a stub, and the metadata that carries a token."""

    service: ModelService
    endless: Endless
    stub: models_pb2_grpc.ModelServiceStub
    metadata: tuple[tuple[str, str], ...]

    async def generate(self, request: GenerateRequest) -> list[GenerateEvent]:
        return [event async for event in self.stub.Generate(request, metadata=self.metadata)]


@asynccontextmanager
async def served(keys: Path, *, max_generators: int = 100) -> AsyncIterator[Room]:
    ensure_keys(keys)
    endless = Endless()
    service = ModelService(ModelRegistry([ExtractiveModel(), endless]), max_generators=max_generators)
    verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=keys)
    add = models_pb2_grpc.add_ModelServiceServicer_to_server
    name = "weft.v1.ModelService"
    server = build_server(
        [Service(name, service, add)], CallInterceptor(verifier, Drain(grace_s=1)), Health([name])
    )
    port = bind(server, "127.0.0.1:0")
    await server.start()
    token = mint(keys, issuer="weft", audience="weft", tenant="t", subject="u", roles=("member",), ttl_s=60)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        yield Room(service, endless, stub, (("authorization", f"Bearer {token}"),))
    await server.stop(0)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with served(tmp_path / "jwks.json") as opened:
        yield opened


def ask(text: str = "How tall is the tower?", model_id: str = "", **fields: object) -> GenerateRequest:
    request = GenerateRequest(model_id=model_id, grounded=True, **fields)  # type: ignore[arg-type]
    request.messages.append(Message(role="user", content=text))
    return request


def passage(number: int = 1, text: str = "The tower is 324 metres tall.") -> Reference:
    return Reference(id=number, document_id="d", name="tower.txt", content=text)


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str], bool]:
    """The reason, the fields that are wrong, and whether it says when to try again."""
    reason, fields, retry = "", [], False
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:  # type: ignore[arg-type]
                info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
                if detail.Unpack(info):
                    reason = info.reason
                elif detail.Unpack(bad):
                    fields = [violation.field for violation in bad.field_violations]
                retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return reason, fields, retry


async def refused(room: Room, request: GenerateRequest) -> tuple[grpc.StatusCode, str, list[str], bool]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await room.generate(request)
    return caught.value.code(), *details(caught.value)


async def until_closed(room: Room) -> float:
    """When the endless model was closed; TimeoutError where it is not."""
    await asyncio.wait_for(room.endless.closed.wait(), 2)
    assert room.service.open_generators == 0
    return room.endless.closed_at


async def test_events_are_numbered_and_end_with_done(room: Room) -> None:
    events = await room.generate(ask(passages=[passage()]))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.type for event in events[:-1]} == {"delta"}
    assert "324 metres tall. [1]" in "".join(event.content for event in events)
    done = events[-1]
    assert (done.type, done.finish_reason, done.model_id) == ("done", "stop", "extractive")
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0
    assert room.service.open_generators == 0


async def test_leaving_stops_the_model_within_50_ms(room: Room) -> None:
    call = room.stub.Generate(ask(model_id="endless"), metadata=room.metadata)
    await call.read()
    assert room.service.open_generators == 1
    left_at = time.perf_counter()
    call.cancel()
    assert await until_closed(room) - left_at < 0.05
    made = room.endless.made
    await asyncio.sleep(0.02)
    assert room.endless.made == made, "no event is made afterwards"


async def test_a_passed_deadline_stops_the_model(room: Room) -> None:
    call = room.stub.Generate(ask(model_id="endless"), metadata=room.metadata, timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    ended_at = time.perf_counter()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert await until_closed(room) - ended_at < 0.05


async def test_one_text_too_many_is_refused_with_when_to_try_again(tmp_path: Path) -> None:
    async with served(tmp_path / "jwks.json", max_generators=1) as room:
        first = room.stub.Generate(ask(model_id="endless"), metadata=room.metadata)
        await first.read()
        refusal = await refused(room, ask())
        assert refusal == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", [], True)
        first.cancel()
        await until_closed(room)
        assert (await room.generate(ask()))[-1].type == "done"


async def test_unknown_model(room: Room) -> None:
    assert (await refused(room, ask(model_id="nobody")))[:2] == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")


async def test_a_prefix_for_a_model_that_cannot_continue(room: Room) -> None:
    refusal = await refused(room, ask(model_id="endless", prefix="So"))
    assert refusal[:2] == (grpc.StatusCode.FAILED_PRECONDITION, "MODEL_CANNOT_CONTINUE")


@pytest.mark.parametrize(
    ("request_json", "field"),
    [
        ({}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 201}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "messages[0].content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"topP": 0}, "top_p"),
        ({"topP": 1.01}, "top_p"),
        ({"topP": "NaN"}, "top_p"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a" * 65]}, "stop[0]"),
        ({"maxTokens": 0}, "max_tokens"),
        ({"maxTokens": 32769}, "max_tokens"),
        ({"passages": [{"content": "x"}]}, "passages[0].id"),
        ({"passages": [{"id": 1}, {"id": 1}]}, "passages[1].id"),
        ({"passages": [{"id": number} for number in range(1, 102)]}, "passages"),
        ({"passages": [{"id": 1, "content": "x" * 1_000_001}]}, "messages"),
    ],
)
async def test_each_field_is_checked(room: Room, request_json: dict[str, object], field: str) -> None:
    request = {"messages": [{"role": "user", "content": "Why?"}], **request_json} if request_json else {}
    code, reason, fields, _ = await refused(room, json_format.ParseDict(request, GenerateRequest()))
    assert (code, reason, fields) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", [field])
    assert room.service.open_generators == 0


async def test_models_are_listed_in_pages_the_default_first(room: Room) -> None:
    first = await room.stub.ListModels(ListModelsRequest(page_size=1), metadata=room.metadata)
    assert [(m.model_id, m.provider, m.can_continue, m.default) for m in first.models] == [
        ("extractive", "extractive", True, True)
    ]
    token = first.next_page_token
    second = await room.stub.ListModels(ListModelsRequest(page_token=token), metadata=room.metadata)
    assert [(m.model_id, m.default) for m in second.models] == [("endless", False)]
    assert not second.next_page_token
    for wrong in (ListModelsRequest(page_size=101), ListModelsRequest(page_token="nowhere")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await room.stub.ListModels(wrong, metadata=room.metadata)
        assert details(caught.value)[0] == "INVALID_FIELD"

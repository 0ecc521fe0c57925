"""The same turn over every transport gives the same events, and what is wrong with it the same reason."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from tests.deploy.envoy_backend import running_edge, token
from tests.servers.chromium import Chromium, PageFailure, chromium
from tests.servers.model_mesh import ModelMesh, killed
from tests.servers.paced_model import STORY
from tests.servers.transports import (
    Asked,
    Stream,
    Transports,
    outcome,
    resumed,
    take,
    text_of,
    transports,
    turn,
)
from weft.v1.chat_pb2 import ChatEvent, ResumeChatRequest, StreamChatRequest

# "web" is gRPC-Web by hand, "page" the page's own client in Chromium.
TRANSPORTS = ("rest", "grpc", "web", "page", "converse", "ws")
CUT = (httpx.TransportError, grpc.aio.AioRpcError, WebSocketException, PageFailure, OSError)


@pytest.fixture(scope="module")
def browser(model_mesh: ModelMesh) -> Iterator[Chromium]:
    with chromium(model_mesh.mesh.url) as started:
        yield started


@asynccontextmanager
async def client_of(
    model_mesh: ModelMesh, browser: Chromium, tenant: str, **more: Any
) -> AsyncIterator[Transports]:
    async with model_mesh.client(tenant, **more) as opened, browser.client(opened.token) as opened.tab:
        yield opened


@pytest.fixture
async def wire(model_mesh: ModelMesh, browser: Chromium) -> AsyncIterator[Transports]:
    async with client_of(model_mesh, browser, f"t-{uuid.uuid4().hex[:8]}") as opened:
        yield opened


def shape(events: list[ChatEvent]) -> list[Any]:
    """Events as one client sees them; how the text was cut into deltas depends on the load."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    rest = [event for event in events if event.type != "delta"]
    for event in rest:
        event.ClearField("seq")
    return [text_of(events), *rest]


async def indexed(wire: Transports) -> None:
    text = "# Quillmoor\n\nThe harbour <b>of</b> Quillmoor 港口 opens at six \\ and shuts at \u2028 nine.\n"
    files = [("file", ("quillmoor.md", text.encode()))]
    answer = await wire.http.post("/api/v1/knowledge/upload", data={"dataset_id": "ds"}, files=files)
    assert answer.status_code == 200, answer.text
    await wire.http.post("/api/v1/knowledge/index", json={"dataset_id": "ds"})
    async with asyncio.timeout(60):
        while (await wire.http.get("/api/v1/knowledge/status/ds")).json()["status"] != "ready":
            await asyncio.sleep(0.1)


async def test_the_same_turn_gives_the_same_events(wire: Transports) -> None:
    await indexed(wire)
    question = "When does the harbour of Quillmoor open?"
    asked = {transport: turn(question, model_id="extractive") for transport in TRANSPORTS}
    events: dict[str, list[ChatEvent]] = {}
    for transport, request in asked.items():
        events[transport], reason = await outcome(getattr(wire, transport)(request))
        assert not reason
        assert [event.type for event in events[transport][-2:]] == ["refs", "done"]
        assert events[transport][-2].references
    for transport, request in asked.items():
        for other in TRANSPORTS:
            again = await outcome(getattr(wire, other)(resumed(request, 0)))
            assert again == (events[transport], "")
    shapes = [shape(each) for each in events.values()]
    assert all(each == shapes[0] for each in shapes)


async def test_a_socket_prints_events_as_rest_does(wire: Transports) -> None:
    """The same fields with the same values in the same order; a socket also says which turn it is."""
    await indexed(wire)
    asked = turn("When does the harbour of Quillmoor open?", model_id="extractive")
    sse, socket = await wire.rest(asked), await wire.ws(resumed(asked, 0))
    assert await take(sse) == await take(socket)
    assert [list(event.items()) for event in sse.printed] == [list(event.items()) for event in socket.printed]
    assert list(sse.printed[-2]["references"][0]) == list(socket.printed[-2]["references"][0])
    assert socket.turn == {"conversation_id": asked.conversation_id, "request_id": asked.request_id}
    await sse.cut()
    await socket.cut()


@dataclass(frozen=True)
class Case:
    """`client`: how the caller differs from the one who has the conversation "mine" with the turn "first"."""

    reason: str
    ask: Callable[[], Asked]
    lifetime_s: float = 3600
    tenant: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def _again(text: str) -> StreamChatRequest:
    request = turn(text, "mine", "story")
    request.request_id = "first"
    return request


def _resume(conversation_id: str, request_id: str, after_seq: int = 0) -> ResumeChatRequest:
    return ResumeChatRequest(conversation_id=conversation_id, request_id=request_id, after_seq=after_seq)


CASES = {
    "no question": Case("INVALID_FIELD", lambda: turn("")),
    "bad id": Case("INVALID_FIELD", lambda: turn("?", "no id")),
    "bad field": Case("INVALID_FIELD", lambda: turn("?", top_k=51)),
    "unknown model": Case("MODEL_NOT_FOUND", lambda: turn("?", model_id="nope")),
    "unknown dataset": Case("DATASET_NOT_FOUND", lambda: turn("?", dataset_ids=["nope"])),
    "other question": Case("REQUEST_ID_REUSED", lambda: _again("Another one?")),
    "unknown conversation": Case("CONVERSATION_NOT_FOUND", lambda: _resume("nope", "first")),
    "unknown turn": Case("TURN_NOT_FOUND", lambda: _resume("mine", "nope")),
    "beyond the end": Case("INVALID_FIELD", lambda: _resume("mine", "first", 1000)),
    "another's conversation": Case(
        "CONVERSATION_NOT_FOUND", lambda: _resume("mine", "first"), tenant="other"
    ),
    "tenant that is not the token's": Case(
        "TENANT_MISMATCH", lambda: turn("?"), headers=(("X-Tenant-ID", "somebody-else"),)
    ),
    "expired token": Case("TOKEN_INVALID", lambda: turn("?"), lifetime_s=-10),
}


@pytest.mark.parametrize("name", CASES)
async def test_what_is_wrong_is_told_with_the_same_reason(
    model_mesh: ModelMesh, browser: Chromium, name: str
) -> None:
    case, tenant = CASES[name], f"t-{uuid.uuid4().hex[:8]}"
    async with model_mesh.client(tenant) as owner:
        assert text_of(await take(await owner.grpc(_again("The first one?")))) == STORY
        before = await owner.stored("mine")
        async with client_of(
            model_mesh,
            browser,
            tenant + case.tenant,
            lifetime_s=case.lifetime_s,
            headers=dict(case.headers),
        ) as client:
            told = {each: await outcome(getattr(client, each)(case.ask())) for each in TRANSPORTS}
        assert told == dict.fromkeys(TRANSPORTS, ([], case.reason))
        assert await owner.stored("mine") == before


async def told(client: Transports, transport: str, asked: Asked) -> str:
    """The reason of a refusal; empty where none was given."""
    try:
        events, reason = await outcome(getattr(client, transport)(asked))
    except InvalidStatus as refused:  # the handshake of a socket
        return next(
            each["reason"] for each in json.loads(refused.response.body)["details"] if "reason" in each
        )
    except (ConnectionClosed, httpx.TransportError):  # before the refusal could be read
        return ""
    assert events == []
    return reason


async def test_too_many_requests_are_told_with_the_same_reason(tmp_path: Path) -> None:
    """Envoy's own refusal. A socket's turns are not counted: only its messages reach the services."""
    limited = [each for each in TRANSPORTS if each != "ws"]
    async with running_edge(tmp_path, requests_per_minute=1) as edge:
        with chromium(edge.url) as browser:
            for transport in limited:
                held = token(tenant=f"by-{transport}")
                async with transports(edge.address, held) as client, browser.client(held) as client.tab:
                    first = await getattr(client, transport)(turn("two"))
                    assert (await take(first, 1))[0].type == "delta"
                    assert await told(client, transport, turn("two")) == "OVERLOADED", transport
                    await first.cut()


# Limits that strike before there is a call read differently: the transport's own words, no reason of ours.
# gRPC: the stream is reset. The page's client takes HTTP 431 for a lost connection, and a message that is too
# long for whichever comes first: the reset, or gRPC's own RESOURCE_EXHAUSTED.
LIMITS: dict[str, tuple[dict[str, str], str, dict[str, set[str]]]] = {
    "headers over 60 KiB": (
        {"X-Big": "x" * 62_000},
        "?",
        {"rest": {"INVALID_FIELD"}, "web": {"INVALID_FIELD"}, "ws": {"INVALID_FIELD"}, "page": {"LOST"}},
    ),
    "a message over 5 MiB": (
        {},
        "x" * 5_500_000,
        {"rest": {"INVALID_FIELD", ""}, "page": {"LOST", "OVERLOADED"}},
    ),
}


@pytest.mark.parametrize("name", LIMITS)
async def test_limits_of_size_differ_by_transport(
    model_mesh: ModelMesh, browser: Chromium, name: str
) -> None:
    headers, question, reasons = LIMITS[name]
    tenant = f"t-{uuid.uuid4().hex[:8]}"
    async with client_of(model_mesh, browser, tenant, headers=headers) as client:
        for transport in TRANSPORTS:
            assert await told(client, transport, turn(question)) in reasons.get(transport, {""}), transport
    async with model_mesh.client(tenant) as client:
        assert (await client.http.get("/api/v1/conversations")).json() == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_second_turn_is_refused_while_one_runs(wire: Transports, transport: str) -> None:
    first = turn("Never end", model_id="endless")
    running = await wire.grpc(first)
    await take(running, 1)
    second = turn("Meanwhile?", first.conversation_id)
    assert await outcome(getattr(wire, transport)(second)) == ([], "TURN_RUNNING")
    await wire.cancel(first)
    await running.cut()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cancel_from_elsewhere_ends_it_with_an_event(wire: Transports, transport: str) -> None:
    asked = turn("Never end", model_id="endless", resumable=True)
    stream = await getattr(wire, transport)(asked)
    events = await take(stream, 2)
    assert await wire.cancel(asked) == "cancelled"
    events += await take(stream)
    await stream.cut()
    assert (events[-1].type, events[-1].reason) == ("error", "TURN_CANCELLED")
    for other in TRANSPORTS:
        assert await outcome(getattr(wire, other)(resumed(asked, 0))) == (events, "")


async def test_a_client_that_leaves_ends_the_turn(model_mesh: ModelMesh, wire: Transports) -> None:
    """Aborted, cancelled or closed: the model is left, and every transport tells how the turn ended."""
    for transport in TRANSPORTS:
        asked = turn(f"Never end {uuid.uuid4().hex}", model_id="endless")
        stream = await getattr(wire, transport)(asked)
        seen = await take(stream, 2)
        await stream.cut()
        await model_mesh.model.abandoned(await model_mesh.model.asked(asked.messages[0].content))
        for other in TRANSPORTS:
            events, reason = await outcome(getattr(wire, other)(resumed(asked, 0)))
            assert (events[:2], reason, events[-1].reason) == (seen, "", "TURN_CANCELLED"), (transport, other)


async def seen_until_cut(stream: Stream, first: asyncio.Event) -> list[ChatEvent]:
    events: list[ChatEvent] = []
    with contextlib.suppress(*CUT):
        while (event := await stream.read()) is not None and event.seq:
            events.append(event)
            first.set()
    return events


async def rest_of(wire: Transports, transport: str, asked: StreamChatRequest, seen: int) -> list[ChatEvent]:
    """Over the same transport, once a new process has taken the turn over from the dead one."""
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(httpx.TransportError, WebSocketException, OSError):
            events, reason = await outcome(getattr(wire, transport)(resumed(asked, seen)))
            if not reason:
                return events
            assert reason == "BACKEND_UNAVAILABLE"
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def chat_killed(model_mesh: ModelMesh) -> None:
    """The process that runs the turns dies and is started again; where it is one of its own, the edge and
    Envoy live on."""
    if model_mesh.topology != "split":
        await killed(model_mesh)
        return
    mesh = model_mesh.mesh
    others = {name: process for name, process in mesh.processes.items() if name != "chat"}
    mesh.processes["chat"].kill()
    await asyncio.to_thread(mesh.processes["chat"].wait)
    mesh.start("chat", "serve", "chat")
    await asyncio.to_thread(mesh.wait_ready)
    assert all(process.poll() is None for process in others.values())


async def test_a_server_killed_in_mid_stream(model_mesh: ModelMesh, wire: Transports) -> None:
    asked = {
        transport: turn(f"Tell the story {transport}", model_id="sequel", resumable=True)
        for transport in TRANSPORTS
    }
    first = {transport: asyncio.Event() for transport in TRANSPORTS}
    reading = {
        transport: asyncio.create_task(
            seen_until_cut(await getattr(wire, transport)(request), first[transport])
        )
        for transport, request in asked.items()
    }
    await asyncio.gather(*(event.wait() for event in first.values()))
    await chat_killed(model_mesh)
    for transport, request in asked.items():
        seen = await reading[transport]
        assert seen[-1].type == "delta"
        events = seen + await rest_of(wire, transport, request, len(seen))
        assert shape(list(events))[0] == STORY
        assert events[-1].type == "done"

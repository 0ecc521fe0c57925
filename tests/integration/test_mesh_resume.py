"""A connection that is cut after any event of an answer: the rest comes, nothing twice, no second turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from tests.servers.model_mesh import ModelMesh, killed
from tests.servers.paced_model import PIECES, STORY
from tests.servers.transports import Stream, Transports, resumed, take, text_of, turn
from weft import Delta, Done, References, Weft
from weft.v1.chat_pb2 import ChatEvent, StreamChatRequest

TRANSPORTS = ("rest", "grpc", "web", "converse", "ws")
# As many deltas as there are pieces, unless a busy machine puts two into one event; refs; done.
MOST_EVENTS = len(PIECES) + 2


@pytest.fixture
async def wire(model_mesh: ModelMesh) -> AsyncIterator[Transports]:
    async with model_mesh.client(f"t-{uuid.uuid4().hex[:8]}") as opened:
        yield opened


def story() -> StreamChatRequest:
    return turn(f"Tell the story {uuid.uuid4().hex}", model_id="story", resumable=True)


def is_whole(events: list[ChatEvent]) -> bool:
    """Every event of the story once, in order."""
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events[-2:]] == ["refs", "done"]
    assert text_of(events) == STORY
    return True


def again(asked: StreamChatRequest, after_seq: int) -> StreamChatRequest:
    """The same request once more."""
    request = StreamChatRequest()
    request.CopyFrom(asked)
    request.after_seq = after_seq
    return request


@pytest.mark.parametrize("ask_again", [again, resumed], ids=["same request", "ResumeChat"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_cut_after_every_event(
    model_mesh: ModelMesh, wire: Transports, transport: str, ask_again: Callable[..., Any]
) -> None:
    """Cut on one transport and resumed on the same; read once more, from any event on, on every other."""

    async def cut_after(count: int) -> None:
        asked = story()
        stream = await getattr(wire, transport)(asked)
        events = await take(stream, count)
        seen = len(events)
        if not seen:
            await model_mesh.model.asked(asked.messages[0].content)
        await stream.cut()
        if not events or events[-1].type != "done":
            rest = await getattr(wire, transport)(ask_again(asked, len(events)))
            events += await take(rest)
            await rest.cut()
        assert is_whole(events)
        for other in TRANSPORTS:
            stored = await getattr(wire, other)(ask_again(asked, seen))
            assert await take(stored) == events[seen:]
            await stored.cut()
        assert len(model_mesh.model.requests(asked.messages[0].content)) == 1
        messages = (await wire.stored(asked.conversation_id))["messages"]
        assert [message["content"] for message in messages] == [asked.messages[0].content, STORY]

    async with asyncio.TaskGroup() as group:
        for count in range(MOST_EVENTS + 1):
            group.create_task(cut_after(count))


async def test_two_readers_and_a_change_of_transport(model_mesh: ModelMesh, wire: Transports) -> None:
    """Each of many connections reads two events and is cut; another reads the same turn all the while."""
    asked = story()
    events: list[ChatEvent] = []
    all_the_while = asyncio.create_task(take(await wire.grpc(asked)))
    await model_mesh.model.asked(asked.messages[0].content)
    while not events or events[-1].type != "done":
        transport = TRANSPORTS[len(events) % len(TRANSPORTS)]
        stream = await getattr(wire, transport)(resumed(asked, len(events)))
        events += await take(stream, 2)
        await stream.cut()
    assert is_whole(events)
    assert await all_the_while == events
    assert len(model_mesh.model.requests(asked.messages[0].content)) == 1


class CuttingProxy:
    """Passes bytes between a client and the mesh, until `cut` breaks every connection off."""

    def __init__(self, port: int) -> None:
        self.address = ""
        self._port = port
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self
            self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, below}
        self._open |= ends
        try:
            await asyncio.gather(_pass(reader, below), _pass(above, writer))
        finally:
            self._open -= ends
            for end in ends:
                end.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@pytest.mark.parametrize("way", ["chat", "converse"])
async def test_the_sdk_resumes_unseen(model_mesh: ModelMesh, way: str) -> None:
    tenant = f"t-{uuid.uuid4().hex[:8]}"
    token = model_mesh.token(tenant)

    async def cut_after(seen: int) -> None:
        question = f"Tell the story {uuid.uuid4().hex}"
        async with (
            CuttingProxy(model_mesh.mesh.port).running() as proxy,
            Weft(proxy.address, token=token) as weft,
            weft.converse() as talk,
        ):
            ask = weft.chat if way == "chat" else talk.ask
            events: list[Any] = []

            async def cut_at_the_start() -> None:
                await model_mesh.model.asked(question)
                proxy.cut()

            starting = asyncio.create_task(cut_at_the_start()) if not seen else None
            async for event in ask("", question):  # "story" is the mesh's default model
                events.append(event)
                if len(events) == seen:
                    proxy.cut()
            if starting is not None:
                await starting
        assert "".join(event.text for event in events if isinstance(event, Delta)) == STORY
        assert [type(event) for event in events[-2:]] == [References, Done]
        assert len(model_mesh.model.requests(question)) == 1

    async with asyncio.TaskGroup() as group:
        for seen in range(MOST_EVENTS):
            group.create_task(cut_after(seen))


async def resumed_after_a_kill(wire: Transports, asked: StreamChatRequest, after_seq: int) -> list[ChatEvent]:
    """The rest of the events: a new process takes the turn over once the dead one has been silent."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await take(await wire.grpc(again(asked, after_seq)))
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


async def seen_until_cut(stream: Stream, first: asyncio.Event) -> list[ChatEvent]:
    """The events until the connection breaks, or the end."""
    events: list[ChatEvent] = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        while (event := await stream.read()) is not None:
            events.append(event)
            first.set()
    return events


def _paragraphs(count: int) -> bytes:
    """A document whose answer is long."""
    lines = [
        f"The harbour of Quillmoor has a pier number {n}, which was built in {1800 + n} of oak from Vale {n}."
        for n in range(count)
    ]
    return ("# Quillmoor\n\n" + "\n\n".join(lines)).encode()


async def index(wire: Transports, files: dict[str, bytes]) -> None:
    parts = [("file", (name, data)) for name, data in files.items()]
    answer = await wire.http.post("/api/v1/knowledge/upload", data={"dataset_id": "ds"}, files=parts)
    assert answer.status_code == 200, answer.text
    await wire.http.post("/api/v1/knowledge/index", json={"dataset_id": "ds"})
    async with asyncio.timeout(60):
        while (await wire.http.get("/api/v1/knowledge/status/ds")).json()["status"] != "ready":
            await asyncio.sleep(0.1)


async def test_the_services_killed_in_mid_answer(model_mesh: ModelMesh, wire: Transports) -> None:
    """One kill for all: turns of the extractive model, of one that can go on, and of one that cannot."""
    if model_mesh.topology == "split":
        pytest.skip("The supervisor that starts the services again is that of `weft up`.")
    await index(wire, {"quillmoor.md": _paragraphs(12)})
    question = "Which piers does the harbour of Quillmoor have, and when were they built?"
    whole = await take(await wire.grpc(turn(question, model_id="extractive", top_k=10)))
    assert whole[-1].type == "done"
    asked = {
        "slow": turn(f"Tell the story {uuid.uuid4().hex}", model_id="slow", resumable=True),
        "sequel": turn(f"Tell the story {uuid.uuid4().hex}", model_id="sequel", resumable=True),
    } | {f"extractive {n}": turn(question, model_id="extractive", top_k=10, resumable=True) for n in range(8)}
    first = {name: asyncio.Event() for name in asked}
    reading: dict[str, asyncio.Task[list[ChatEvent]]] = {}
    for name, request in asked.items():
        reading[name] = asyncio.create_task(seen_until_cut(await wire.grpc(request), first[name]))
        if name in ("slow", "sequel"):
            await first[name].wait()
    await asyncio.wait(
        [asyncio.create_task(event.wait()) for event in first.values()][2:],
        return_when=asyncio.FIRST_COMPLETED,
    )
    await killed(model_mesh)
    seen = {name: await task for name, task in reading.items()}

    rest = {name: await resumed_after_a_kill(wire, asked[name], len(seen[name])) for name in asked}
    events = {name: seen[name] + rest[name] for name in asked}
    for name, request in asked.items():
        assert [event.seq for event in events[name]] == list(range(1, len(events[name]) + 1))
        assert await take(await wire.grpc(resumed(request, 0))) == events[name]
    extractive = [name for name in asked if name.startswith("extractive")]
    print(f"\nextractive turns cut after events: {[len(seen[name]) for name in extractive]} of {len(whole)}")
    for name in extractive:
        assert text_of(events[name]) == text_of(whole)
        assert list(events[name][-2].references) == list(whole[-2].references)
        assert (await status_of(wire, asked[name])) == "complete"

    assert is_whole(events["sequel"])
    assert len(model_mesh.model.requests(asked["sequel"].messages[0].content)) == 2
    assert (await status_of(wire, asked["sequel"])) == "complete"

    assert (events["slow"][-1].type, events["slow"][-1].reason) == ("error", "INTERRUPTED")
    assert text_of(events["slow"]) and STORY.startswith(text_of(events["slow"]))
    assert len(model_mesh.model.requests(asked["slow"].messages[0].content)) == 1
    assert (await status_of(wire, asked["slow"])) == "interrupted"
    following = turn("And then?", asked["slow"].conversation_id, "story")
    assert is_whole(await take(await wire.grpc(following)))


async def status_of(wire: Transports, asked: StreamChatRequest) -> str:
    """How the answer is kept."""
    return str((await wire.stored(asked.conversation_id))["messages"][1]["status"])

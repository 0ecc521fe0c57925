"""Clients that stop reading, many at once, over every transport: nothing grows, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from bench.setting import processes
from tests.servers.model_mesh import ModelMesh, running_model_mesh
from tests.servers.paced_model import FLOOD_PIECE, PIECES
from tests.servers.transports import Stream, Transports, take, text_of, turn
from weft.v1 import models_pb2, models_pb2_grpc
from weft.v1.common_pb2 import Message

READERS = 6
TRANSPORTS = ("rest", "grpc", "web", "converse", "ws")
ANSWER_CHARACTERS = 262_144
# What the kernel's own buffers of a connection may hold, each way, and more than all of ours together.
MOST_OF_A_READER = 16 << 20
MOST_GROWN = 120 << 20


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelMesh]:
    with running_model_mesh(tmp_path_factory.mktemp("flooded"), "one") as running:
        yield running


def resident(mesh: ModelMesh) -> int:
    """Of Envoy and the services, in bytes."""
    found = processes(mesh.mesh)
    return sum(each.memory_info().rss for name, each in found.items() if name in ("envoy", "services"))


def processes_of(mesh: ModelMesh) -> set[int]:
    return {each.pid for name, each in processes(mesh.mesh).items() if name != "parser"}


@contextlib.asynccontextmanager
async def generating(client: Transports, transport: str, question: str) -> AsyncIterator[None]:
    """A text of the model is asked for, its first piece read, and no more."""
    messages = [Message(role="user", content=question)]
    request = models_pb2.GenerateRequest(model_id="flood", messages=messages, max_tokens=32_768)
    if transport == "grpc":
        call: Any = models_pb2_grpc.ModelServiceStub(client.channel).Generate(
            request, metadata=client.metadata
        )
        await call.read()
        yield
        call.cancel()
        return
    body = request.SerializeToString()
    json = {"model_id": "flood", "messages": [{"role": "user", "content": question}], "max_tokens": 32_768}
    asked: dict[str, Any] = (
        {"url": "/api/v1/models/generate", "json": json}
        if transport == "rest"
        else {
            "url": "/weft.v1.ModelService/Generate",
            "content": struct.pack(">BI", 0, len(body)) + body,
            "headers": {"content-type": "application/grpc-web+proto"},
        }
    )
    async with client.http.stream("POST", **asked) as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_raw(1))
        yield


@pytest.mark.timeout(180)
async def test_texts_without_end_stand_still_while_nobody_reads(flooded: ModelMesh) -> None:
    """The model itself is no longer read: no process of ours holds what it would write."""
    name = f"flood-{uuid.uuid4().hex}"
    async with flooded.client("still") as client:
        before, alive = resident(flooded), processes_of(flooded)
        async with AsyncExitStack() as open_calls:
            for transport in ("rest", "web", "grpc"):
                for number in range(READERS):
                    await open_calls.enter_async_context(
                        generating(client, transport, f"{name}-{transport}-{number}.")
                    )
            requests = flooded.model.requests(name)
            assert len(requests) == 3 * READERS
            made = -1
            async with asyncio.timeout(60):
                while made != (made := sum(request.made for request in requests)):
                    await asyncio.sleep(0.5)
            assert made * len(FLOOD_PIECE.encode()) < len(requests) * MOST_OF_A_READER
            assert resident(flooded) - before < MOST_GROWN
            # Who reads is served meanwhile.
            async with asyncio.timeout(20):
                assert (await take(await client.rest(turn("Begin", model_id="story"))))[-1].type == "done"
        for request in requests:
            await flooded.model.abandoned(request)
        assert processes_of(flooded) == alive


@pytest.mark.timeout(180)
async def test_turns_are_whole_when_their_readers_come_back(flooded: ModelMesh) -> None:
    """In fewer events than the model wrote pieces, for what nobody reads comes together."""
    async with flooded.client("back") as client:
        before = resident(flooded)
        streams: list[tuple[str, Stream]] = []
        for number in range(READERS):
            for transport in TRANSPORTS:
                question = turn(f"Flood {number} {uuid.uuid4().hex}", model_id="flood")
                stream = await getattr(client, transport)(question)
                assert (await take(stream, 1))[0].type == "delta"
                streams.append((transport, stream))
        await asyncio.sleep(3)
        assert resident(flooded) - before < MOST_GROWN
        for transport, stream in streams:
            async with asyncio.timeout(60):
                events = await take(stream)
            assert events[-1].type == "done", transport
            assert [event.seq for event in events] == list(range(2, len(events) + 2)), transport
            rest = text_of(events)
            assert ANSWER_CHARACTERS - 3 * len(FLOOD_PIECE) * 40 < len(rest) < ANSWER_CHARACTERS + 4000
            assert set(rest) == set(FLOOD_PIECE)
            await stream.cut()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_keeps_up_gets_every_piece_apart_and_at_once(flooded: ModelMesh, transport: str) -> None:
    async with flooded.client("apart") as client:
        stream = await getattr(client, transport)(turn(f"Slowly {uuid.uuid4().hex}", model_id="slow"))
        loop = asyncio.get_running_loop()
        came: list[float] = []
        contents: list[str] = []
        while (event := await stream.read()) is not None and event.type == "delta":
            came.append(loop.time())
            contents.append(event.content)
        await stream.cut()
    assert contents == PIECES
    gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
    assert max(gaps) < 0.3 + 0.3  # the model's own pace, and no more than as much again

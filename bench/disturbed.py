"""A load that keeps account while a mesh is disturbed: reads, chats on every transport, uploads, index jobs.

Used by `bench.kill_mesh` and `bench.kill_worker`, and by their quick versions in the tests.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import httpx
import psutil
from websockets.exceptions import InvalidHandshake

from tests.servers.model_mesh import ModelMesh
from tests.servers.paced_model import STORY
from tests.servers.transports import Refused, Stream, Transports, resumed, take, text_of, turn
from weft.v1 import models_pb2_grpc
from weft.v1.chat_pb2 import ChatEvent, GetConversationRequest, StreamChatRequest
from weft.v1.models_pb2 import ListModelsRequest

__all__ = ["Account", "disturbed", "gone"]

TRANSPORTS = ("grpc", "web", "rest", "converse", "ws")
# A client asks again for so long. A killed `weft up` with all services needs seconds to be back.
_PATIENCE_S = 120.0
_TENANT = "disturbed"
_BROKEN = (
    grpc.aio.AioRpcError,
    httpx.TransportError,
    Refused,
    InvalidHandshake,
    OSError,
    asyncio.InvalidStateError,
)


@dataclass
class Account:
    """What was asked and what came of it. `wrong` has a line for each promise that was not kept."""

    reads: int = 0
    failed_reads: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    resumed: int = 0
    interrupted: int = 0
    uploads: int = 0
    indexed: int = 0
    wrong: list[str] = field(default_factory=list)


@asynccontextmanager
async def disturbed(model_mesh: ModelMesh, *, with_uploads: bool = True) -> AsyncIterator[Account]:
    """Load while inside `async with`; at its end all that was begun is brought to an end and checked."""
    account = Account()
    async with model_mesh.client(_TENANT) as client:
        load = _Load(client, account)
        await load.prepare()
        async with asyncio.TaskGroup() as group:
            for read in load.reads():
                group.create_task(load.reading(read))
            for number, transport in enumerate((*TRANSPORTS, *TRANSPORTS)):
                group.create_task(load.chatting(transport, "sequel" if number < len(TRANSPORTS) else "slow"))
            if with_uploads:
                group.create_task(load.uploading())
            try:
                yield account
            finally:
                load.stop.set()
        await load.check()


class _Load:
    def __init__(self, client: Transports, account: Account) -> None:
        self.stop = asyncio.Event()
        self._client = client
        self._account = account
        self._turns: list[tuple[StreamChatRequest, list[ChatEvent]]] = []
        self._uploaded: dict[str, set[str]] = {}

    async def prepare(self) -> None:
        """A conversation to read."""
        asked = turn("Begin", conversation_id="read", model_id="story")
        await take(await self._client.grpc(asked))

    def reads(self) -> list[Callable[[], Awaitable[str]]]:
        """Calls that may be sent twice, over gRPC and REST; each gives what went wrong, or nothing."""
        client, metadata = self._client, self._client.metadata
        models = models_pb2_grpc.ModelServiceStub(client.channel)

        async def rpc(method: Any, request: Any) -> str:
            try:
                await method(request, metadata=metadata, timeout=30)
            except grpc.aio.AioRpcError as error:
                return f"{method._method.decode()} {error.code().name}"
            return ""

        async def rest(method: str, path: str, body: Any = None) -> str:
            try:
                answer = await client.http.request(method, path, json=body)
            except httpx.TransportError as error:
                return f"{path} {type(error).__name__}"
            return "" if answer.status_code == 200 else f"{path} {answer.status_code}"

        return [
            lambda: rpc(client.chat.GetConversation, GetConversationRequest(conversation_id="read")),
            lambda: rpc(models.ListModels, ListModelsRequest()),
            lambda: rest("GET", "/api/v1/conversations/read"),
            lambda: rest("POST", "/api/v1/search", {"query": "shuttle"}),
        ]

    async def reading(self, read: Callable[[], Awaitable[str]]) -> None:
        while not self.stop.is_set():
            failure = await read()
            self._account.reads += 1
            if failure:
                self._account.failed_reads[failure] += 1
            await asyncio.sleep(0.01)

    async def chatting(self, transport: str, model_id: str) -> None:
        while not self.stop.is_set():
            asked = turn(f"Tell it {uuid.uuid4().hex}", model_id=model_id, resumable=True)
            events = await self._whole(transport, asked)
            self._account.turns += 1
            self._turns.append((asked, events))
            said = f"{transport} {model_id} {asked.request_id}: {[event.type for event in events]}"
            if [event.seq for event in events] != list(range(1, len(events) + 1)):
                self._account.wrong.append(f"events lost or twice: {said}")
            elif events[-1].type == "done" and text_of(events) == STORY:
                pass
            elif (
                events[-1].reason == "INTERRUPTED"
                and model_id == "slow"
                and STORY.startswith(text_of(events[:-1]))
            ):
                self._account.interrupted += 1
            else:
                self._account.wrong.append(f"another text or end: {said} {events[-1].reason}")

    async def _whole(self, transport: str, asked: StreamChatRequest) -> list[ChatEvent]:
        """Asks, and after each break once more, until the last event."""
        events: list[ChatEvent] = []
        last: Exception | None = None
        until = time.monotonic() + _PATIENCE_S
        for attempt in itertools.count():
            stream: Stream | None = None
            request = StreamChatRequest()
            request.CopyFrom(asked)
            request.after_seq = len(events)
            try:
                stream = await getattr(self._client, transport)(request)
                while (event := await stream.read()) is not None and (event.seq or event.type != "error"):
                    events.append(event)
                    if event.type in ("done", "error"):
                        self._account.resumed += attempt > 0
                        return events
            except _BROKEN as error:
                last = error
            finally:
                if stream is not None:
                    await stream.cut()
            if time.monotonic() > until:
                raise TimeoutError(f"{transport} {asked.request_id} after {len(events)} events: {last!r}")
            await asyncio.sleep(0.1)
        raise AssertionError

    async def uploading(self) -> None:
        """A dataset at a time: some files, each sent until it is acknowledged, then an index job."""
        http, dice = self._client.http, random.Random(1)
        while not self.stop.is_set():
            dataset = f"d-{uuid.uuid4().hex[:8]}"
            for number in range(3):
                text = " ".join(f"word{dice.randint(0, 500)}" for _ in range(2_000))
                name = f"{number}.txt"
                upload = partial(
                    http.post,
                    "/api/v1/knowledge/upload",
                    data={"dataset_id": dataset},
                    files={"file": (name, text.encode())},
                )
                await self._until_ok(upload)
                self._uploaded.setdefault(dataset, set()).add(name)
                self._account.uploads += 1
            body = {"dataset_id": dataset, "options": {"chunk_size": 128}}
            await self._until_ok(partial(http.post, "/api/v1/knowledge/index", json=body))
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await self.stop.wait()

    async def _until_ok(self, send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        until = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(httpx.TransportError):
                answer = await send()
                if answer.status_code == 200:
                    return answer
                if answer.status_code not in (408, 429, 500, 502, 503, 504):
                    raise AssertionError(f"{answer.status_code}: {answer.text[:300]}")
            if time.monotonic() > until:
                raise TimeoutError("no answer")
            await asyncio.sleep(0.2)

    async def check(self) -> None:
        """Reads everything again that was acknowledged."""
        for asked, events in self._turns:
            stream = await self._client.grpc(resumed(asked, 0))
            again = await take(stream)
            await stream.cut()
            if again != events:
                self._account.wrong.append(f"read again, {asked.request_id} differs")
        for dataset, names in self._uploaded.items():
            await self._check_dataset(dataset, names)

    async def _check_dataset(self, dataset: str, names: set[str]) -> None:
        http, until = self._client.http, time.monotonic() + 120
        while (status := (await http.get(f"/api/v1/knowledge/status/{dataset}")).json())["status"] != "ready":
            if status["status"] == "failed" or time.monotonic() > until:
                self._account.wrong.append(f"not indexed: {status}")
                return
            await asyncio.sleep(0.2)
        answer = await self._until_ok(lambda: http.get(f"/api/v1/knowledge/datasets/{dataset}/documents"))
        found = {document["name"]: document["status"] for document in answer.json()["documents"]}
        if found != dict.fromkeys(names, "indexed"):
            self._account.wrong.append(f"{dataset} has {found} of {names}")
        self._account.indexed += 1


async def gone(process: psutil.Process) -> None:
    """Kills it with -9, and waits until it is no more."""
    process.kill()
    await asyncio.to_thread(_until_gone, process)


def _until_gone(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.002)

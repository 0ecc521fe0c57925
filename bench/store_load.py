"""A load on a mesh whose store is killed, and what came of each call.

Used by `bench.store_outage`, and by its quick version in the tests.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2

from tests.servers.model_mesh import ModelMesh
from tests.servers.paced_model import STORY
from tests.servers.transports import Transports, resumed, take, text_of, turn
from weft.v1.chat_pb2 import ChatEvent, GetConversationRequest, StreamChatRequest

__all__ = ["PATHS", "Call", "Load", "store_load"]

PATHS = ("chat", "search", "read", "upload", "index")
# Longer than the server waits for a store by itself (15 s), so that it is the server which answers.
_DEADLINE_S = 25.0
_AGAIN_S = 0.1
_TENANT = "outage"
NEEDLE = "The shuttle number 4711 belongs to the blue loom."
QUESTION = "Which loom does the shuttle number 4711 belong to?"


@dataclass(frozen=True, slots=True)
class Call:
    """When it began and ended, in seconds of `time.monotonic()`, and the reason it was refused for."""

    path: str
    began: float
    ended: float
    failure: str = ""


@dataclass
class Load:
    """`wrong` has a line for each promise that was not kept, `degraded` what was said to be missing."""

    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    degraded: Counter[str] = field(default_factory=Counter)
    turns: list[tuple[StreamChatRequest, list[ChatEvent]]] = field(default_factory=list)
    resumed: int = 0
    interrupted: int = 0
    uploads: dict[str, str] = field(default_factory=dict)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def recovered_after_s(self, path: str, answered: float) -> float:
        """From when the store answered to the first success of `path` after its last failure.

        Not a number where none came.
        """
        later = [call for call in self.calls if call.path == path and call.ended > answered]
        failures = [call.ended for call in later if call.failure]
        wanted_after = max(failures, default=answered)
        successes = [call.ended for call in later if not call.failure and call.ended >= wanted_after]
        return min(successes) - answered if successes else float("nan")

    def failures(self) -> Counter[str]:
        return Counter(f"{call.path} {call.failure}" for call in self.calls if call.failure)

    def longest_s(self) -> float:
        return max(call.ended - call.began for call in self.calls)


@asynccontextmanager
async def store_load(model_mesh: ModelMesh) -> AsyncIterator[Load]:
    """Load while inside `async with`; at its end all is brought to an end, and read again."""
    load = Load()
    async with model_mesh.client(_TENANT) as client:
        driver = _Driver(client, load)
        await driver.prepare()
        async with asyncio.TaskGroup() as group:
            for model_id in ("sequel", "sequel", "slow", "slow"):
                group.create_task(driver.chatting(model_id))
            for call in (driver.search, driver.search, driver.read, driver.read, driver.upload):
                group.create_task(driver.again_and_again(call))
            group.create_task(driver.indexing())
            try:
                yield load
            finally:
                load.stop.set()
        await driver.check()


class _Refused(Exception):
    """Says why, with `+retry` where it says when to try again."""


class _Driver:
    def __init__(self, client: Transports, load: Load) -> None:
        self._client = client
        self._load = load
        self._known: list[Any] = []

    async def prepare(self) -> None:
        """A conversation to read, and a dataset to search."""
        await take(await self._client.grpc(turn("Begin", conversation_id="read", model_id="story")))
        self._known = list((await self._conversation()).messages)
        await self._upload("known", NEEDLE)
        await self._index("known")

    # --- the calls: each raises _Refused, or leaves a line in `wrong` ---

    async def search(self) -> None:
        body = {"query": "shuttle number 4711", "filters": {"dataset_ids": ["known"]}}
        found = await self._rest("POST", "/api/v1/search", json=body)
        missing = found.get("metadata", {}).get("degraded", [])
        self._load.degraded.update(f"search: {each}" for each in missing)
        if not missing and [each["content"] for each in found.get("results", [])] != [NEEDLE]:
            self._load.wrong.append(f"search found {found}")

    async def read(self) -> None:
        if list((await self._conversation()).messages) != self._known:
            self._load.wrong.append("a conversation reads otherwise")

    async def upload(self) -> None:
        text = f"Loom {uuid.uuid4().hex} weaves."
        await self._upload("kept", text)
        self._load.uploads[text] = "kept"
        await asyncio.sleep(0.2)

    async def _upload(self, dataset: str, text: str) -> None:
        files = {"file": (f"{uuid.uuid4().hex}.txt", text.encode())}
        answer = await self._rest(
            "POST", "/api/v1/knowledge/upload", data={"dataset_id": dataset}, files=files
        )
        if answer["documents"][0]["status"] not in ("stored", "duplicate"):
            self._load.wrong.append(f"upload: {answer}")

    async def _index(self, dataset: str) -> None:
        body = {"dataset_id": dataset, "options": {"chunk_size": 64}}
        await self._rest("POST", "/api/v1/knowledge/index", json=body)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            status = (await self._rest("GET", f"/api/v1/knowledge/status/{dataset}"))["status"]
            if status == "ready":
                return
            if status == "failed":
                self._load.wrong.append(f"the index job of {dataset} failed")
                return
            await asyncio.sleep(0.1)
        raise _Refused("not ready within 60 s")

    # --- the loops ---

    async def again_and_again(self, call: Callable[[], Awaitable[None]]) -> None:
        while not self._load.stop.is_set():
            await self._noted(call.__name__, call)
            await asyncio.sleep(_AGAIN_S)

    async def indexing(self) -> None:
        """A dataset at a time: a document, and its job until it is searchable."""
        while not self._load.stop.is_set():
            dataset, text = f"d-{uuid.uuid4().hex[:12]}", f"{NEEDLE} {uuid.uuid4().hex}"
            upload, index = partial(self._upload, dataset, text), partial(self._index, dataset)
            await self._until_done("upload", upload)
            self._load.uploads[text] = dataset
            await self._until_done("index", index)

    async def chatting(self, model_id: str) -> None:
        while not self._load.stop.is_set():
            asked = turn(f"{QUESTION} {uuid.uuid4().hex}", model_id=model_id, resumable=True)
            asked.dataset_ids.append("known")
            events = await self._whole(asked)
            self._load.turns.append((asked, events))
            said = f"{model_id} {asked.request_id}: {[event.type for event in events]} {events[-1].reason}"
            text, end = text_of([event for event in events if event.type == "delta"]), events[-1]
            if [event.seq for event in events] != list(range(1, len(events) + 1)):
                self._load.wrong.append(f"events lost or twice: {said}")
            elif end.type == "done" and text == STORY:
                self._load.degraded.update(f"chat: {each}" for each in end.degraded)
                found = [each.content for event in events for each in event.references]
                if not end.degraded and found != [NEEDLE]:
                    self._load.wrong.append(f"references {found}: {said}")
            elif end.reason == "INTERRUPTED" and model_id == "slow" and STORY.startswith(text):
                self._load.interrupted += 1
            else:
                self._load.wrong.append(f"another text or end: {said}")

    async def _whole(self, asked: StreamChatRequest) -> list[ChatEvent]:
        """Asks, and after each break once more, until the last event. A call is one attempt."""
        events: list[ChatEvent] = []
        for attempt in itertools.count():
            began, request = time.monotonic(), StreamChatRequest()
            request.CopyFrom(asked)
            request.after_seq = len(events)
            stream = await self._client.grpc(request, timeout_s=_DEADLINE_S)
            try:
                while (event := await stream.read()) is not None:
                    events.append(event)
                    if event.type in ("done", "error"):
                        self._load.calls.append(Call("chat", began, time.monotonic()))
                        self._load.resumed += attempt > 0
                        return events
                failure = "ended without an end"
            except grpc.aio.AioRpcError as error:
                failure = _of_rpc(error)
            finally:
                await stream.cut()
            self._load.calls.append(Call("chat", began, time.monotonic(), failure))
            await asyncio.sleep(_AGAIN_S)
        raise AssertionError

    async def _until_done(self, path: str, call: Callable[[], Awaitable[None]]) -> None:
        done = False
        while not done:
            done = await self._noted(path, call)
            await asyncio.sleep(_AGAIN_S)

    async def _noted(self, path: str, call: Callable[[], Awaitable[None]]) -> bool:
        began, failure = time.monotonic(), ""
        try:
            await call()
        except _Refused as refused:
            failure = str(refused)
        self._load.calls.append(Call(path, began, time.monotonic(), failure))
        return not failure

    async def _conversation(self) -> Any:
        request = GetConversationRequest(conversation_id="read")
        try:
            return await self._client.chat.GetConversation(
                request, metadata=self._client.metadata, timeout=_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            raise _Refused(_of_rpc(error)) from None

    async def _rest(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        try:
            answer = await self._client.http.request(method, path, timeout=_DEADLINE_S, **more)
        except httpx.TransportError as error:
            raise _Refused(type(error).__name__) from None
        if answer.status_code != 200:
            raise _Refused(_of_rest(answer))
        return dict(answer.json())

    # --- the end ---

    async def check(self) -> None:
        """Reads everything again that was acknowledged."""
        for asked, events in self._load.turns:
            stream = await self._client.grpc(resumed(asked, 0), timeout_s=_DEADLINE_S)
            again = await take(stream)
            await stream.cut()
            if again != events:
                self._load.wrong.append(f"read again, {asked.request_id} differs")
        await self._index("kept")
        for dataset in set(self._load.uploads.values()):
            await self._check_dataset(dataset, {t for t, at in self._load.uploads.items() if at == dataset})

    async def _check_dataset(self, dataset: str, texts: set[str]) -> None:
        for text in texts:
            body = {
                "query": text.split()[-2 if text.endswith(".") else -1],
                "filters": {"dataset_ids": [dataset]},
            }
            found = await self._rest("POST", "/api/v1/search", json=body)
            if text not in [each["content"] for each in found.get("results", [])]:
                self._load.wrong.append(f"{dataset}: an acknowledged upload is not found")


def _of_rpc(error: grpc.aio.AioRpcError) -> str:
    reason, again = "", ""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason = info.reason
                again = again or "+retry" * detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return (reason or f"{error.code().name} {error.details()}") + again


def _of_rest(answer: httpx.Response) -> str:
    try:
        details = answer.json()["details"]
    except (ValueError, KeyError):
        return f"{answer.status_code} {answer.text[:80]}"
    reason = next((each["reason"] for each in details if "reason" in each), str(answer.status_code))
    return str(reason) + "+retry" * any("retryDelay" in each or "retry_delay" in each for each in details)

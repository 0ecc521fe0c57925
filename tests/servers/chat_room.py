"""A chat room with a scripted model and search, for tests that need no server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from weft.v1.chat_pb2 import ChatEvent, StreamChatRequest
from weft.v1.common_pb2 import Message, Reference, Usage
from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_CANNOT_CONTINUE
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.retrieval_pb2 import SearchMetadata, SearchRequest, SearchResponse
from weftd.chat.room import ChatTurns
from weftd.errors import FailedPrecondition, WeftError, reason_name
from weftd.rpc.drain import Drain
from weftd.stores.records import conversations
from weftd.stores.records.engine import Records

WORDS = ("RAG（Retrieval", "-Augmented ", "Generation）", "是一种 **technique** [1]", "。")


class ScriptedModel:
    """Writes `words`, one each time it is let (`allow`), or at once; knows when it was closed."""

    def __init__(
        self, words: Sequence[str] = WORDS, *, paced: bool = False, can_continue: bool = False
    ) -> None:
        self.words = words
        self.paced = paced
        self.can_continue = can_continue
        self.finish_reason = "stop"
        self.error: Exception | None = None
        self.requests: list[GenerateRequest] = []
        self.open = 0
        self.closed_at: list[float] = []
        self.written = 0
        self._steps = asyncio.Semaphore(0)

    def allow(self, words: int = 1_000) -> None:
        for _ in range(words):
            self._steps.release()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        self.requests.append(request)
        self.open += 1
        try:
            if request.prefix and not self.can_continue:
                raise FailedPrecondition(ERROR_REASON_MODEL_CANNOT_CONTINUE, "It cannot go on.")
            skip = len(request.prefix)
            for word in self.words:
                if skip >= len(word):
                    skip -= len(word)
                    continue
                if self.paced:
                    await self._steps.acquire()
                else:
                    await asyncio.sleep(0)
                self.written += 1
                yield GenerateEvent(type="delta", content=word[skip:])
                skip = 0
            if self.error is not None:
                raise self.error
            usage = Usage(prompt_tokens=7, completion_tokens=5, total_tokens=12)
            yield GenerateEvent(type="done", usage=usage, finish_reason=self.finish_reason)
        finally:
            self.open -= 1
            self.closed_at.append(time.monotonic())


class ScriptedSearch:
    """Finds `found`, or fails with `error`, or never answers while `stuck`."""

    def __init__(self, found: int = 2) -> None:
        self.found = found
        self.error: Exception | None = None
        self.stuck = False
        self.degraded: list[str] = []
        self.requests: list[SearchRequest] = []
        self.closed_at: list[float] = []

    async def search(self, request: SearchRequest) -> SearchResponse:
        self.requests.append(request)
        try:
            if self.stuck:
                await asyncio.Event().wait()
            if self.error is not None:
                raise self.error
            return SearchResponse(
                results=[passage(number) for number in range(1, min(self.found, request.top_k) + 1)],
                metadata=SearchMetadata(degraded=self.degraded),
            )
        finally:
            self.closed_at.append(time.monotonic())


def passage(number: int) -> Reference:
    return Reference(
        id=number,
        dataset_id="ds",
        document_id=f"doc{number}",
        name=f"{number}.pdf",
        page=number,
        content=f"Passage {number}.",
        score=1 / number,
    )


def question(
    text: str = "请介绍一下RAG技术", conversation_id: str = "c1", request_id: str = "r1", **more: Any
) -> StreamChatRequest:
    return StreamChatRequest(
        conversation_id=conversation_id,
        request_id=request_id,
        messages=[Message(role="user", content=text)],
        **more,
    )


def chat_turns(*parts: Any, **options: Any) -> ChatTurns:
    """Turns over these parts; no document is ever deleted unless `live_documents` says so."""
    return ChatTurns(*parts, **{"live_documents": lambda _connection, _tenant, ids: ids, **options})


@asynccontextmanager
async def chat_room(
    records: Records,
    model: ScriptedModel | None = None,
    search: ScriptedSearch | None = None,
    drain: Drain | None = None,
    **options: Any,
) -> AsyncIterator[ChatTurns]:
    turns = chat_turns(
        records, search or ScriptedSearch(), model or ScriptedModel(), drain or Drain(1.0), **options
    )
    async with turns:
        yield turns


async def read_all(events: AsyncGenerator[ChatEvent, None]) -> list[ChatEvent]:
    async with aclosing(events):
        return [event async for event in events]


def text_of(events: Sequence[ChatEvent]) -> str:
    return "".join(event.content for event in events if event.type == "delta")


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Waits for what other tasks and threads bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


async def kept(records: Records, conversation_id: str = "c1") -> list[tuple[str, str, str]]:
    rows = await records.read(lambda c: conversations.page(c, "acme", conversation_id, 100))
    return [(row.role, row.content, row.status) for row in rows]


def resume(turns: ChatTurns, after_seq: int = 0, **more: Any) -> Any:
    key = {"tenant": "acme", "conversation_id": "c1", "request_id": "r1"} | more
    return turns.resume(**key, after_seq=after_seq, resumable=True, deadline=None)


async def reason_of(events: Any) -> str:
    with pytest.raises(WeftError) as raised:
        await read_all(events)
    return reason_name(raised.value.reason)


async def first_deltas(events: Any, model: ScriptedModel, count: int) -> list[ChatEvent]:
    """Each is read before the next is written."""
    got: list[ChatEvent] = []
    for _ in range(count):
        model.allow(1)
        got.append(await anext(events))
    return got

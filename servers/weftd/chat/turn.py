"""One running turn as its process sees it: the events so far, who reads them, and how it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from weft.v1.chat_pb2 import ChatEvent, StreamChatRequest
from weftd.chat.answer import Answer
from weftd.errors import WeftError, reason_name

__all__ = [
    "CANCELLED",
    "CLIENT_LEFT",
    "DEADLINE",
    "INTERRUPTED",
    "State",
    "StopReason",
    "Turn",
    "TurnKey",
    "error_event",
]


class TurnKey(NamedTuple):
    tenant: str
    conversation_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class StopReason:
    """Why a turn ends before its answer does: what its last event says and how it is kept."""

    reason: str
    message: str
    status: str

    def event(self, seq: int = 0) -> ChatEvent:
        return ChatEvent(type="error", reason=self.reason, message=self.message, seq=seq)


CANCELLED = StopReason("TURN_CANCELLED", "The answer was stopped. Ask again for a whole one.", "cancelled")
CLIENT_LEFT = StopReason(
    "TURN_CANCELLED", "The answer was stopped because nobody read it. Ask again for a whole one.", "cancelled"
)
DEADLINE = StopReason(
    "DEADLINE_EXCEEDED", "The time for this answer ran out. Ask again with more time.", "cancelled"
)
INTERRUPTED = StopReason(
    "INTERRUPTED",
    "The server that wrote this answer stopped, and the model cannot go on with it. Ask again.",
    "interrupted",
)


class State(Enum):
    RUNNING = auto()
    ENDED = auto()  # its last event is stored
    FAILED = auto()  # `failure` says why
    ELSEWHERE = auto()  # another process runs it, or it ended before: the store knows


class Turn:
    """Events from `forgotten` + 1 to `seq` are in memory, all of them committed.

    While every reader is behind, text gathers into one event instead of many; a reader that keeps up gets
    each as soon as it is committed. Whoever is far behind reads from the store.
    """

    def __init__(
        self, key: TurnKey, request: StreamChatRequest, fingerprint: bytes, *, grace_s: float
    ) -> None:
        self.key = key
        self.request = request
        self.fingerprint = fingerprint
        self.task: asyncio.Task[None] | None = None
        self.turn_id = 0
        self.seq = 0
        self.forgotten = 0
        self.state = State.RUNNING
        self.failure: WeftError | None = None
        self.stopped: StopReason | None = None
        self.text: list[str] = []
        self._events: list[ChatEvent] = []
        self._pending: list[str] = []
        self._work: asyncio.Task[Answer] | None = None
        self._grace_s = grace_s
        self._readers = 0
        self._read_to = 0  # by the foremost of them
        self._caught_up = asyncio.Event()
        self._resumable = False
        self._grace: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._to_do = asyncio.Event()

    # What readers do.

    @contextmanager
    def reader(self, resumable: bool, deadline: float | None) -> Iterator[None]:
        """Someone reads meanwhile. When the last one leaves a running turn ends, or waits for the grace."""
        self._readers += 1
        self._resumable = resumable
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        try:
            yield
        finally:
            self._readers -= 1
            if self._readers == 0 and self.state is State.RUNNING:
                self._left_alone(deadline)

    def _left_alone(self, deadline: float | None) -> None:
        loop = asyncio.get_running_loop()
        if deadline is not None and loop.time() >= deadline - _DEADLINE_SLACK_S:
            self.stop(DEADLINE)
        elif self._resumable:
            self._grace = loop.call_later(self._grace_s, self.stop, CLIENT_LEFT)
        else:
            self.stop(CLIENT_LEFT)

    async def read(self, after_seq: int) -> AsyncGenerator[ChatEvent, None]:
        """The events after `after_seq` as they are committed; ends with the turn, or where memory begins
        after them."""
        self._has_read(after_seq)
        while after_seq >= self.forgotten:
            while self.forgotten <= after_seq < self.seq:
                event = self._events[after_seq - self.forgotten]
                after_seq = event.seq
                yield event
                self._has_read(after_seq)
            if self.state is not State.RUNNING:
                return
            if after_seq >= self.seq:
                await self._changed.wait()

    def _has_read(self, seq: int) -> None:
        if self._read_to < seq <= self.seq:
            self._read_to = seq
            if self.seq - seq < _BEHIND:
                self._caught_up.set()

    def forget(self, seq: int) -> None:
        """Drops the events up to `seq` from memory; the store keeps them."""
        dropped = min(seq, self.seq) - self.forgotten
        if dropped > 0:
            del self._events[:dropped]
            self.forgotten += dropped

    async def ended(self) -> None:
        """Waits until the turn no longer runs here."""
        while self.state is State.RUNNING:
            await self._changed.wait()

    # What its work does.

    def start(self, work: asyncio.Task[Answer]) -> None:
        """`work` makes the answer; it is cancelled when the turn is stopped."""
        self._work = work
        work.add_done_callback(lambda _: self._to_do.set())
        work.add_done_callback(lambda _: self._caught_up.set())
        if self.stopped is not None:
            work.cancel()

    def add(self, text: str) -> None:
        """Text that the model wrote. What comes while a commit runs goes into one event together."""
        if text:
            self._pending.append(text)
            self._to_do.set()

    def stop(self, reason: StopReason) -> None:
        """Ends the turn now: its work is cancelled before anything else happens. Twice: the first counts."""
        work = self._work
        if self.stopped is not None or self.state is not State.RUNNING or (work is not None and work.done()):
            return
        self.stopped = reason
        self._pending.clear()
        if work is not None:
            work.cancel()

    def lose(self) -> None:
        """The store gave the turn to someone else, or it was deleted."""
        self.leave(State.ELSEWHERE)
        if self._work is not None:
            self._work.cancel()

    # What its writer does.

    async def to_store(self) -> tuple[list[ChatEvent], bool]:
        """Waits for text or the end of the work: the delta to store, if any, and whether it is the end."""
        await self._to_do.wait()
        assert self._work is not None
        if self.seq - self._read_to >= _BEHIND and not self._work.done():
            await self._until_read()
        self._to_do.clear()
        events: list[ChatEvent] = []
        if self._pending:
            events.append(ChatEvent(type="delta", content="".join(self._pending), seq=self.seq + 1))
            self._pending.clear()
        return events, self._work.done()

    async def _until_read(self) -> None:
        """Until a reader comes near or the work ends; but not for long: what is not stored can be lost."""
        self._caught_up.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATHER_S):
                await self._caught_up.wait()

    def go_on_after(self, seq: int, text: str) -> None:
        """The events up to `seq`, with this text, were made by another process and are stored."""
        self.seq = self.forgotten = self._read_to = seq
        self.text = [text]
        self._turn_to(State.RUNNING)

    def commit(self, events: list[ChatEvent], state: State = State.RUNNING) -> None:
        """These events are stored now: readers get them."""
        self._events += events
        self.text += [event.content for event in events if event.type == "delta"]
        self.seq = events[-1].seq
        if len(self._events) >= 2 * _MOST_KEPT:
            self.forget(self.seq - _MOST_KEPT)
        self._turn_to(state)

    def leave(self, state: State, failure: WeftError | None = None) -> None:
        """The turn runs here no longer."""
        if self.state is State.RUNNING:
            self.failure = failure or self.failure
            self._turn_to(state)

    def _turn_to(self, state: State) -> None:
        self.state = state
        if state is not State.RUNNING and self._grace is not None:
            self._grace.cancel()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def error_event(error: WeftError, seq: int = 0) -> ChatEvent:
    """What a stream says of an error; without `seq` it is no event of the turn."""
    return ChatEvent(
        type="error",
        reason=reason_name(error.reason),
        message=error.message,
        retry_after_ms=error.retry_after_ms,
        seq=seq,
    )


# So many events behind the last one a reader no longer keeps up.
_BEHIND = 32
_GATHER_S = 1.0
# Events in memory, up to twice as many; the store has all.
_MOST_KEPT = 256
# A client's cancel at its deadline comes about when our own clock says so, on either side.
_DEADLINE_SLACK_S = 0.05

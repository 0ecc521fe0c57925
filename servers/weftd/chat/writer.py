"""The task of one turn: begin it, commit what its work writes, end it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog

from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Message, Reference
from weftd.chat.answer import Answer, write_answer
from weftd.chat.context import MOST_HISTORY
from weftd.chat.ports import Models, Retrieval
from weftd.chat.turn import DEADLINE, INTERRUPTED, State, StopReason, Turn, error_event
from weftd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    WeftError,
)
from weftd.stores.records import handover, new_turns, turn_log, turns
from weftd.stores.records.engine import BatchOperation, Records
from weftd.stores.records.new_turns import Begun, Busy, NewTurn
from weftd.stores.records.turn_log import Append, End, LiveDocuments

__all__ = ["TurnWriter", "request_id_reused"]

# A store that went away comes back: the turn waits for it so long, and its model meanwhile.
_STORE_PATIENCE_S = 15.0
# At its deadline the transport breaks the call off: the last event has to be on its way before.
_TOLD_BEFORE_S = 0.05

P = TypeVar("P")
T = TypeVar("T")

log = structlog.get_logger()


class TurnWriter:
    """Runs turns for the worker of that name; see `ChatTurns`."""

    def __init__(
        self,
        records: Records,
        retrieval: Retrieval,
        models: Models,
        worker: str,
        *,
        live_documents: LiveDocuments,
        max_turn_s: float,
        stale_ms: int,
    ) -> None:
        self._records = records
        self._retrieval = retrieval
        self._models = models
        self._worker = worker
        self._max_turn_s = max_turn_s
        self._stale_ms = stale_ms
        self._begin_turns = partial(
            new_turns.begin,
            interrupted=INTERRUPTED.event(),
            stale_ms=stale_ms,
            most_history=MOST_HISTORY,
        )
        self._end_turns = partial(turn_log.end, live_documents=live_documents)

    async def run(self, turn: Turn, deadline: float | None, *, is_new: bool) -> None:
        """Runs a new turn, or one whose worker died, to its end. What goes wrong is left in `turn`."""
        try:
            begun = await (self._begin(turn) if is_new else self._take_over(turn))
            if begun is None:
                turn.leave(State.ELSEWHERE)
            else:
                await self._write(turn, *begun, deadline)
        except WeftError as error:
            turn.leave(State.FAILED, error)
        except Exception:
            log.exception("turn_failed", request_id=turn.key.request_id)
            turn.leave(State.FAILED, _internal())

    async def _begin(self, turn: Turn) -> tuple[str, Sequence[Message]] | None:
        """The question and what came before it; None where the store has this turn already."""
        *earlier, asked = turn.request.messages
        del turn.request.messages[:]
        new = NewTurn(
            *turn.key,
            question=asked.content,
            fingerprint=turn.fingerprint,
            options=turn.request.SerializeToString(),
            earlier=earlier,
            worker=self._worker,
            now_ms=_now_ms(),
        )
        begun = await self._records.write_batched(self._begin_turns, new)
        match begun:
            case Begun():
                if turn.request.after_seq:
                    await self._records.write(
                        lambda connection: turns.withdraw(connection, *turn.key, self._worker)
                    )
                    raise InvalidArgument({"after_seq": "There is no such turn yet. Ask without it."})
                turn.turn_id = begun.turn_id
                return asked.content, begun.history
            case Busy():
                raise FailedPrecondition(
                    error_reason_pb2.ERROR_REASON_TURN_RUNNING,
                    "This conversation's last question is still being answered. Wait for it, or stop it.",
                    metadata={"request_id": begun.request_id},
                    retry_after_s=1.0,
                )
        if begun.fingerprint != turn.fingerprint:
            raise request_id_reused()
        return None

    async def _take_over(self, turn: Turn) -> tuple[str, Sequence[Message]] | None:
        """The same for a turn that another worker began; None where someone else has it."""
        taken = await self._records.write(
            lambda connection: handover.take_over(
                connection, turn.key, self._worker, stale_ms=self._stale_ms, most_history=MOST_HISTORY
            )
        )
        if taken is None:
            return None
        log.info("turn_taken_over", request_id=turn.key.request_id, seq=taken.last_seq)
        turn.turn_id = taken.turn_id
        turn.go_on_after(taken.last_seq, taken.text)
        return taken.question, taken.history

    async def _write(
        self, turn: Turn, question: str, history: Sequence[Message], deadline: float | None
    ) -> None:
        prefix = "".join(turn.text)
        work = asyncio.create_task(
            write_answer(self._retrieval, self._models, turn.request, question, history, prefix, turn.add)
        )
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._max_turn_s
        if deadline is not None:
            ends_at = min(ends_at, deadline - _TOLD_BEFORE_S)
        timer = loop.call_at(ends_at, turn.stop, DEADLINE)
        try:
            turn.start(work)
            while True:
                events, is_end = await turn.to_store()
                if turn.state is not State.RUNNING:
                    return  # lost meanwhile
                if is_end:
                    await self._end(turn, work, events, prefix)
                    return
                if events and not await self._append(turn, events):
                    return
        finally:
            timer.cancel()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _append(self, turn: Turn, events: list[ChatEvent]) -> bool:
        """Commits events, then shows them. False: another process has the turn now."""
        if not await self._store(turn_log.append, self._to_append(turn, events)):
            turn.leave(State.ELSEWHERE)
            return False
        turn.commit(events)
        return True

    async def _end(
        self, turn: Turn, work: asyncio.Task[Answer], events: list[ChatEvent], prefix: str
    ) -> None:
        """Commits the last events with the answer; takes back a turn that failed before its first."""
        after_seq = turn.seq
        ending = _ending(turn, work, prefix, after_seq + len(events))
        if ending.failure is not None and after_seq + len(events) == 0:
            # Before it is taken back: the heartbeat may miss it in the store sooner than we leave it.
            turn.failure = ending.failure
            await self._records.write(lambda connection: turns.withdraw(connection, *turn.key, self._worker))
            raise ending.failure
        text = "".join([*turn.text, *(event.content for event in events)])
        events = [*events, *ending.events]
        end = End(
            turn.key.tenant, self._to_append(turn, events), ending.status, text, ending.references, _now_ms()
        )
        deleted = await self._store(self._end_turns, end, durable=True)
        if deleted is None:
            turn.leave(State.ELSEWHERE)
            return
        if deleted:
            turn_log.forget_documents(events, deleted)
        turn.commit(events, State.ENDED)

    def _to_append(self, turn: Turn, events: Sequence[ChatEvent]) -> Append:
        return Append(turn.turn_id, self._worker, turn.seq, [event.SerializeToString() for event in events])

    async def _store(self, operation: BatchOperation[P, T], item: P, *, durable: bool = False) -> T:
        """Commits, and waits for a store that does not answer. Both operations may be repeated."""
        loop = asyncio.get_running_loop()
        give_up_at: float | None = None
        pause_s = 0.05
        while True:
            try:
                return await self._records.write_batched(operation, item, durable=durable)
            except (Unavailable, ResourceExhausted):
                # From the first refusal on: a store that froze is found only after a while.
                if give_up_at is None:
                    give_up_at = loop.time() + _STORE_PATIENCE_S
                elif loop.time() > give_up_at:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


@dataclass(frozen=True, slots=True)
class _Ending:
    status: str
    events: list[ChatEvent]
    references: Sequence[Reference] = ()
    failure: WeftError | None = None


def _ending(turn: Turn, work: asyncio.Task[Answer], prefix: str, seq: int) -> _Ending:
    """What the end of the work means for the turn; its last events follow `seq`."""
    if turn.stopped is not None:
        return _stopped(turn.stopped, seq)
    error = asyncio.CancelledError() if work.cancelled() else work.exception()
    if error is None:
        answer = work.result()
        return _Ending(
            "complete",
            [
                ChatEvent(type="refs", references=answer.references, degraded=answer.degraded, seq=seq + 1),
                ChatEvent(type="done", usage=answer.usage, degraded=answer.degraded, seq=seq + 2),
            ],
            answer.references,
        )
    if isinstance(error, DeadlineExceeded):
        return _stopped(DEADLINE, seq)
    if not isinstance(error, WeftError):
        log.error("turn_failed", request_id=turn.key.request_id, exc_info=error)
        error = _internal()
    if prefix and error.reason == error_reason_pb2.ERROR_REASON_MODEL_CANNOT_CONTINUE:
        return _stopped(INTERRUPTED, seq)
    return _Ending("failed", [error_event(error, seq + 1)], failure=error)


def _stopped(reason: StopReason, seq: int) -> _Ending:
    return _Ending(reason.status, [reason.event(seq + 1)])


def request_id_reused() -> InvalidArgument:
    """The same id came with another question."""
    return InvalidArgument(
        {"request_id": "This id belongs to another question. Use a new one for each."},
        reason=error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED,
    )


def _internal() -> WeftError:
    return WeftError(
        error_reason_pb2.ERROR_REASON_INTERNAL,
        "The answer failed for a fault in the server; its log has the request id. Ask again.",
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

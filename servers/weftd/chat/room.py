"""All the turns that this process runs, and those of other processes as the store knows them.

A turn is a task of the room, not of the call that asked for it. Whoever reads it gets its events from
memory while it runs here, and from the store otherwise: after its end, or while another process runs it. A
turn whose process died is taken over by the one that is asked for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

import structlog

from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import ChatEvent, RateAnswerRequest, StreamChatRequest
from weftd.chat.ports import Models, Retrieval
from weftd.chat.turn import CANCELLED, State, Turn, TurnKey
from weftd.chat.upkeep import Upkeep
from weftd.chat.writer import TurnWriter, request_id_reused
from weftd.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from weftd.rpc.drain import Drain
from weftd.rpc.tenants import TenantCounts
from weftd.stores.records import conversations, handover, turn_log
from weftd.stores.records.engine import Records
from weftd.stores.records.turns import StoredTurn

__all__ = ["ChatTurns", "no_conversation"]

REPLAY_KEPT_S = 24 * 3600
"""How long after its end a turn's events can be read again."""

_BATCH = 256
_TAIL_POLL_S = 0.05

log = structlog.get_logger()


class ChatTurns:
    """Runs turns. An async context manager: its tasks live inside.

    `live_documents` tells which documents are not deleted: an answer keeps no reference to another.
    `resume_grace_s`: how long a resumable turn waits for its client. `max_turns` run at once, of one tenant
    `max_tenant_turns`; one more is refused with OVERLOADED. Each runs `max_turn_s` at most. A worker that has
    not beaten for `stale_s` (it does every `beat_s`) has lost its turns.
    """

    def __init__(
        self,
        records: Records,
        retrieval: Retrieval,
        models: Models,
        drain: Drain,
        *,
        live_documents: turn_log.LiveDocuments,
        resume_grace_s: float = 5.0,
        max_turns: int = 2_000,
        max_tenant_turns: int = 1_000,
        max_turn_s: float = 600.0,
        beat_s: float = 1.0,
        stale_s: float = 3.0,
    ) -> None:
        self.worker = uuid.uuid4().hex
        self.drain = drain
        self._records = records
        self._grace_s = resume_grace_s
        self._max_turns = max_turns
        self._max_tenant_turns = max_tenant_turns
        self._stale_ms = round(stale_s * 1000)
        self._running: dict[TurnKey, Turn] = {}
        self._running_of = TenantCounts()
        self._writer = TurnWriter(
            records,
            retrieval,
            models,
            self.worker,
            live_documents=live_documents,
            max_turn_s=max_turn_s,
            stale_ms=self._stale_ms,
        )
        self._upkeep = Upkeep(
            records,
            self.worker,
            self._running,
            beat_s=beat_s,
            stale_ms=self._stale_ms,
            replay_kept_ms=REPLAY_KEPT_S * 1000,
            max_turn_ms=round(max_turn_s * 1000),
        )
        # Called once, when the server begins to drain: the streams that would run on.
        self.streams: set[Callable[[], None]] = set()
        self._tasks: asyncio.TaskGroup
        self._background: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ChatTurns:
        await self._upkeep.beat()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._background = [
            self._tasks.create_task(self._upkeep.run()),
            self._tasks.create_task(self._tell_streams()),
        ]
        # The calls behind a turn go through this very server: cut off with it, they would fail the turn.
        self.drain.at_end.append(self._let_go)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._let_go()
        for task in self._background:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def _let_go(self) -> None:
        """Cuts off what still runs and leaves it to whichever process is asked for it next."""
        turn_tasks = [turn.task for turn in self._running.values() if turn.task is not None]
        for task in turn_tasks:
            task.cancel()
        await asyncio.gather(*turn_tasks, return_exceptions=True)
        self._background[0].cancel()  # its next beat would say that the worker lives
        await asyncio.gather(self._background[0], return_exceptions=True)
        await self._upkeep.retire()

    @property
    def running(self) -> int:
        """Turns that run here now."""
        return len(self._running)

    async def ask(
        self, tenant: str, request: StreamChatRequest, deadline: float | None
    ) -> AsyncGenerator[ChatEvent, None]:
        """Begins the turn of `request`, whose ids are filled in, or goes on with it; yields its events.

        `deadline` is in seconds of the loop's clock. Raises TURN_RUNNING, REQUEST_ID_REUSED, OVERLOADED,
        DRAINING, and whatever went wrong before the first event.
        """
        key = TurnKey(tenant, request.conversation_id, request.request_id)
        fingerprint = _fingerprint(request)
        turn = self._running.get(key)
        if turn is None:
            self.drain.refuse_new()
            turn = Turn(key, request, fingerprint, grace_s=self._grace_s)
            self._run(turn, deadline, is_new=True)
        follow = self._follow(key, turn, request.after_seq, request.resumable, deadline, fingerprint)
        async with aclosing(follow) as events:
            async for event in events:
                yield event

    async def resume(
        self,
        tenant: str,
        conversation_id: str,
        request_id: str,
        after_seq: int,
        resumable: bool,
        deadline: float | None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """The events of a turn after `after_seq`. CONVERSATION_NOT_FOUND, TURN_NOT_FOUND, REPLAY_EXPIRED."""
        key = TurnKey(tenant, conversation_id, request_id)
        follow = self._follow(key, self._running.get(key), after_seq, resumable, deadline, None)
        async with aclosing(follow) as events:
            async for event in events:
                yield event

    async def cancel(self, tenant: str, conversation_id: str, request_id: str) -> str:
        """Stops a turn; "cancelled", or "ended" where it had ended before. NOT_FOUND as in `resume`."""
        turn = self._running.get(TurnKey(tenant, conversation_id, request_id))
        if turn is not None:
            turn.stop(CANCELLED)
            await turn.ended()
            if turn.state is State.ENDED:
                return "ended" if turn.stopped is None else "cancelled"
        outcome = await self._records.write(
            lambda connection: handover.request_cancel(
                connection,
                tenant,
                conversation_id,
                request_id,
                event=CANCELLED.event(),
                stale_ms=self._stale_ms,
                now_ms=_now_ms(),
            )
        )
        if outcome is None:
            raise await self._missing(tenant, conversation_id, request_id)
        return "ended" if outcome == "ended" else "cancelled"

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """Deletes a conversation; a turn that runs in it is stopped first. CONVERSATION_NOT_FOUND."""
        for key, turn in list(self._running.items()):
            if key[:2] == (tenant, conversation_id):
                turn.stop(CANCELLED)
                await turn.ended()
        if not await self._records.write(
            lambda connection: conversations.delete(connection, tenant, conversation_id), durable=True
        ):
            raise no_conversation(conversation_id)

    async def rate(self, tenant: str, request: RateAnswerRequest) -> None:
        """Sets the rating of an answer, or takes it back. NOT_FOUND as in `resume`."""
        if not await self._records.write(
            lambda connection: conversations.rate(connection, tenant, request, _now_ms()), durable=True
        ):
            raise await self._missing(tenant, request.conversation_id, request.request_id)

    def acknowledge(self, tenant: str, conversation_id: str, request_id: str, seq: int) -> None:
        """The client has shown the events up to `seq`: memory may forget them."""
        turn = self._running.get(TurnKey(tenant, conversation_id, request_id))
        if turn is not None:
            turn.forget(seq)

    async def _tell_streams(self) -> None:
        await self.drain.started.wait()
        for go_away in list(self.streams):
            go_away()

    def _run(self, turn: Turn, deadline: float | None, *, is_new: bool) -> None:
        """Starts the task of a new turn, or of one to take over."""
        if len(self._running) >= self._max_turns:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                "Too many answers are being written at once. Try again in a moment.",
            )
        tenant = turn.key.tenant
        if self._running_of.of(tenant) >= self._max_tenant_turns:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                "Too many answers are being written for this tenant. Wait for one to end.",
            )
        self._running[turn.key] = turn
        self._running_of.began(tenant)
        self.drain.call_began()
        turn.task = self._tasks.create_task(self._writer.run(turn, deadline, is_new=is_new))
        turn.task.add_done_callback(lambda _: self._ran(turn))

    def _ran(self, turn: Turn) -> None:
        del self._running[turn.key]
        self._running_of.ended(turn.key.tenant)
        turn.leave(State.ELSEWHERE)
        self.drain.call_ended()

    async def _follow(
        self,
        key: TurnKey,
        turn: Turn | None,
        after_seq: int,
        resumable: bool,
        deadline: float | None,
        fingerprint: bytes | None,
    ) -> AsyncGenerator[ChatEvent, None]:
        """The events after `after_seq` until the last, wherever the turn runs, has run or comes to run."""
        was_there = turn is not None
        while True:
            if turn is not None:
                if fingerprint is not None and turn.fingerprint != fingerprint:
                    raise request_id_reused()
                with turn.reader(resumable, deadline):
                    async with aclosing(self._follow_here(turn, after_seq)) as events:
                        async for event in events:
                            after_seq = event.seq
                            yield event
                if turn.failure is not None:
                    raise turn.failure
                if turn.state is State.ENDED and after_seq >= turn.seq:
                    _check_after(after_seq, turn.seq)
                    return
            try:
                stored, batch, alive = await self._look(key, after_seq)
            except NotFound:
                if not was_there:
                    raise
                yield CANCELLED.event(after_seq + 1)  # its conversation was deleted, at another process
                return
            was_there = True
            if fingerprint is not None and stored.fingerprint != fingerprint:
                raise request_id_reused()
            for event in batch:
                after_seq = event.seq
                yield event
                if event.type in ("done", "error"):
                    return
            turn = self._running.get(key)
            if turn is not None or len(batch) == _BATCH:
                continue
            if stored.status != "running":
                _check_after(after_seq, stored.last_seq)
                return
            if alive:
                await asyncio.sleep(_TAIL_POLL_S)
                turn = self._running.get(key)
                continue
            self.drain.refuse_new()
            options = StreamChatRequest.FromString(stored.options)
            turn = Turn(key, options, stored.fingerprint, grace_s=self._grace_s)
            self._run(turn, deadline, is_new=False)

    async def _follow_here(self, turn: Turn, after_seq: int) -> AsyncGenerator[ChatEvent, None]:
        """The events of a turn of this process; those that memory has forgotten come from the store.

        Ends before the last one where the store has them no more: the conversation was deleted.
        """
        while True:
            async with aclosing(turn.read(after_seq)) as events:
                async for event in events:
                    after_seq = event.seq
                    yield event
            if after_seq >= turn.forgotten:
                return
            stored = partial(turn_log.events_after, turn_id=turn.turn_id, after_seq=after_seq, most=_BATCH)
            forgotten = await self._records.read(stored)
            if not forgotten:
                return
            for event in forgotten:
                after_seq = event.seq
                yield event

    async def _look(self, key: TurnKey, after_seq: int) -> tuple[StoredTurn, list[ChatEvent], bool]:
        """The turn as it is stored, its next events, and whether its worker is alive."""
        stored, events, alive = await self._records.read(
            lambda connection: handover.look(
                connection, *key, after_seq=after_seq, most=_BATCH, stale_ms=self._stale_ms
            )
        )
        if stored is None:
            raise await self._missing(*key)
        expired = stored.ended_at_ms is not None and stored.ended_at_ms < _now_ms() - REPLAY_KEPT_S * 1000
        if expired or not stored.replayable:
            raise FailedPrecondition(
                error_reason_pb2.ERROR_REASON_REPLAY_EXPIRED,
                "The events of this turn are no longer kept. GetConversation has its messages.",
                metadata={"request_id": key.request_id},
            )
        return stored, events, alive

    async def _missing(self, tenant: str, conversation_id: str, request_id: str) -> NotFound:
        """What is not there: the turn, or its conversation."""
        if await self._records.read(
            lambda connection: conversations.read(connection, tenant, conversation_id)
        ):
            return NotFound(
                error_reason_pb2.ERROR_REASON_TURN_NOT_FOUND,
                "This conversation has no such turn. Ask the question again.",
                metadata={"request_id": request_id},
            )
        return no_conversation(conversation_id)


def no_conversation(conversation_id: str) -> NotFound:
    """Also for another tenant's: nothing tells them apart."""
    return NotFound(
        error_reason_pb2.ERROR_REASON_CONVERSATION_NOT_FOUND,
        f"There is no conversation {conversation_id}. ListConversations has those there are.",
        metadata={"conversation_id": conversation_id},
    )


def _check_after(after_seq: int, last_seq: int) -> None:
    if after_seq > last_seq:
        raise InvalidArgument({"after_seq": f"Is {after_seq}, but the turn ended with event {last_seq}."})


def _fingerprint(request: StreamChatRequest) -> bytes:
    """Tells a request that came twice from another one with the same id."""
    return hashlib.blake2b(request.messages[-1].content.encode(), digest_size=16).digest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

"""Many turns on one stream: what `Converse` does between its requests and its responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import structlog

from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import (
    CancelTurnRequest,
    ChatEvent,
    ConverseRequest,
    ConverseResponse,
    GoAway,
    ResumeChatRequest,
    StreamChatRequest,
)
from weftd.chat.checks import check_ids, check_turn
from weftd.chat.room import ChatTurns
from weftd.chat.turn import error_event
from weftd.errors import InvalidArgument, ResourceExhausted, WeftError
from weftd.rpc import caller

__all__ = ["converse"]

_MOST_TURNS = 16
_MOST_TASKS = 64
# Responses that wait for the client: each turn stops reading when it is full.
_QUEUE = 32
# What a turn's span is called: several turns are in one call.
_TURN = "weft.v1.ChatService/Converse.turn"

log = structlog.get_logger()

_Name = tuple[str, str]


async def converse(
    turns: ChatTurns,
    tenant: str,
    requests: AsyncIterator[ConverseRequest],
    deadline: float | None,
) -> AsyncGenerator[ConverseResponse, None]:
    """The responses to `requests`. An error that is no event of a turn's own has `seq` 0.

    When it is closed, its turns have lost their connection.
    """
    turns.drain.refuse_new()
    stream = _Stream(turns, tenant, deadline)
    reading = asyncio.create_task(stream.read(requests))
    turns.streams.add(stream.go_away)
    try:
        while True:
            response = await stream.responses.get()
            if response is None:
                return
            if isinstance(response, Exception):
                raise response
            yield response
    finally:
        turns.streams.discard(stream.go_away)
        tasks = {reading, *stream.tasks}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Stream:
    """What goes on between the requests and the responses of one call."""

    def __init__(self, turns: ChatTurns, tenant: str, deadline: float | None) -> None:
        self.responses: asyncio.Queue[ConverseResponse | Exception | None] = asyncio.Queue(_QUEUE)
        self.tasks: set[asyncio.Task[None]] = set()
        self._turns = turns
        self._tenant = tenant
        self._deadline = deadline
        self._pumps: dict[_Name, asyncio.Task[None]] = {}

    async def read(self, requests: AsyncIterator[ConverseRequest]) -> None:
        """Takes requests until the client half-closes; what runs then is answered to its end."""
        try:
            async for request in requests:
                match request.WhichOneof("kind"):
                    case "turn":
                        await self._ask(request.turn)
                    case "resume":
                        await self._resume(request.resume)
                    case "interrupt":
                        while len(self.tasks) >= _MOST_TASKS:
                            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
                        self._own(self._interrupt(request.interrupt))
                    case "ack":
                        ack = request.ack
                        self._turns.acknowledge(self._tenant, ack.conversation_id, ack.request_id, ack.seq)
                    case _:
                        raise InvalidArgument({"kind": "Send a turn, an interrupt, an ack or a resume."})
            while self.tasks:
                await asyncio.wait(self.tasks)
        except Exception as error:
            await self.responses.put(error)
        else:
            await self.responses.put(None)

    def go_away(self) -> None:
        """The server drains: says so, and ends the stream when what runs has ended."""
        self._own(self._leave(list(self._pumps.values())))

    async def _leave(self, pumps: list[asyncio.Task[None]]) -> None:
        grace_ms = round(self._turns.drain.grace_s * 1000)
        await self.responses.put(ConverseResponse(go_away=GoAway(reason="draining", grace_ms=grace_ms)))
        if pumps:
            await asyncio.wait(pumps)
        await self.responses.put(None)

    async def _ask(self, request: StreamChatRequest) -> None:
        if request.request_id and not request.conversation_id:
            request.conversation_id = f"conv_{request.request_id}"
        name = (request.conversation_id, request.request_id)
        try:
            check_turn(request)
        except WeftError as error:
            await self.responses.put(_error_response(name, error))
        else:
            await self._pump(name, self._turns.ask(self._tenant, request, self._deadline))

    async def _resume(self, request: ResumeChatRequest) -> None:
        name = (request.conversation_id, request.request_id)
        try:
            check_ids(*name)
        except WeftError as error:
            await self.responses.put(_error_response(name, error))
        else:
            resumed = self._turns.resume(
                self._tenant, *name, request.after_seq, request.resumable, self._deadline
            )
            await self._pump(name, resumed)

    async def _interrupt(self, request: CancelTurnRequest) -> None:
        name = (request.conversation_id, request.request_id)
        try:
            check_ids(*name)
            await self._turns.cancel(self._tenant, *name)
        except Exception as error:
            await self.responses.put(_error_response(name, error))

    async def _pump(self, name: _Name, events: AsyncGenerator[ChatEvent, None]) -> None:
        """Sends a turn's events as they come; those that were sent for the same turn until now stop."""
        before = self._pumps.get(name)
        if before is None and len(self._pumps) >= _MOST_TURNS:
            full = ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"{_MOST_TURNS} turns run on this stream. Wait for one to end, or open another stream.",
            )
            await self.responses.put(_error_response(name, full))
            return
        pump = self._pumps[name] = self._own(self._send(name, events))
        pump.add_done_callback(lambda _: self._pumps.pop(name) if self._pumps[name] is pump else None)
        if before is not None:
            before.cancel()

    async def _send(self, name: _Name, events: AsyncGenerator[ChatEvent, None]) -> None:
        conversation_id, request_id = name
        try:
            with caller.part(_TURN, request_id):
                async with aclosing(events):
                    async for event in events:
                        await self.responses.put(
                            ConverseResponse(
                                conversation_id=conversation_id, request_id=request_id, event=event
                            )
                        )
        except Exception as error:
            await self.responses.put(_error_response(name, error))

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


def _error_response(name: _Name, error: Exception) -> ConverseResponse:
    if isinstance(error, WeftError):
        event = error_event(error)
    else:
        log.error("converse_failed", request_id=name[1], exc_info=error)
        event = ChatEvent(type="error", reason="INTERNAL", message="The server failed. Try again.")
    return ConverseResponse(conversation_id=name[0], request_id=name[1], event=event)

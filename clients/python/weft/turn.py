"""One turn: its events, over as many connections as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import grpc

from weft import events
from weft.connection import Connection, being_cancelled, new_id, pause_s
from weft.errors import NotFound, ResourceExhausted, Unauthenticated, Unavailable, WeftError, from_rpc
from weft.events import ChatEvent, Delta, Done
from weft.v1.chat_pb2 import CancelTurnRequest, ResumeChatRequest, StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

_CANCEL_WITHIN_S: Final = 2.0
_END_WITHIN_S: Final = 0.5
_CANCEL_PAUSES_S: Final = (0.02, 0.1, 0.3)
# How long a server that has never answered is tried: a wrong address is to be heard of soon.
_FIRST_CONTACT_S: Final = 2.0
# A call that a server has held open for this long was begun there.
_WORKED_ON_S: Final = 0.3
# The server's own word that another attempt gets further; every other reason is an answer.
_TRANSIENT: Final = frozenset({"", "BACKEND_UNAVAILABLE", "DRAINING", "OVERLOADED"})


def turn_request(
    conversation_id: str,
    question: str | Sequence[Message],
    *,
    request_id: str | None,
    dataset_ids: Sequence[str],
    top_k: int,
    temperature: float | None,
    model_id: str,
    use_graph_rag: bool,
    use_cache: bool,
    stream: bool,
) -> StreamChatRequest:
    """The request of a new turn, with the ids that were left out; see `Weft.chat`."""
    request_id = request_id or new_id()
    return StreamChatRequest(
        conversation_id=conversation_id or f"conv_{request_id}",
        request_id=request_id,
        messages=[Message(role="user", content=question)] if isinstance(question, str) else question,
        stream=stream,
        temperature=temperature,
        top_k=top_k,
        use_graph_rag=use_graph_rag,
        use_cache=use_cache,
        dataset_ids=dataset_ids,
        model_id=model_id,
        resumable=True,
    )


class Turn:
    """A question and its answer: iterate it for its events.

        async for event in weft.chat("conv_1", "What is RAG?"):
            match event:
                case Delta(text): ...

    A connection that is lost in mid-answer is made again and the events go on where they were: none
    comes twice, none is missing. Leaving the loop before its end (`break`, an exception, a cancelled
    task) stops the turn on the server; so does leaving `async with Weft(…)`. `conversation_id` and
    `request_id` name the turn, for `weft.resume` in another program.

    Iterating raises `WeftError`s, also for what goes wrong in the middle of the answer.
    """

    def __init__(
        self,
        connection: Connection,
        request: StreamChatRequest | ResumeChatRequest,
        *,
        timeout_s: float,
        resume_for_s: float,
    ) -> None:
        self._connection = connection
        self._request = request
        self._timeout_s = timeout_s
        self._resume_for_s = resume_for_s
        self._over = False
        self._reached = False
        self._renewed = False
        self._leaving: asyncio.Task[None] | None = None
        self.conversation_id: Final[str] = request.conversation_id
        self.request_id: Final[str] = request.request_id

    async def __aiter__(self) -> AsyncGenerator[ChatEvent, None]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout_s
        lost_at: float | None = None
        attempt = 0
        call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._connection.on_close.add(self._leave)
        try:
            while True:
                opened_at = loop.time()
                try:
                    call = await self._open(end - opened_at)
                    while True:
                        event = await self._next(call)
                        lost_at, attempt = None, 0
                        yield event
                        if self._over:
                            await _read_out(call)
                            return
                except WeftError as failure:
                    if self._over or not self._may_go_on(failure):
                        self._over = True
                        raise
                    now = loop.time()
                    if now - opened_at > _WORKED_ON_S and self._connection.is_connected:
                        self._reached = True
                    lost_at = now if lost_at is None else lost_at
                    patience_s = self._resume_for_s if self._reached else _FIRST_CONTACT_S
                    wait_s = pause_s(attempt, failure)
                    attempt += 1
                    if now + wait_s > min(end, lost_at + patience_s):
                        self._over = True  # nobody is there to be told
                        raise
                    await asyncio.sleep(wait_s)
        finally:
            self._connection.on_close.discard(self._leave)
            if call is not None:
                call.cancel()
            if not self._over:
                await asyncio.shield(self._leave())

    async def text(self) -> str:
        """The whole answer."""
        return "".join([event.text async for event in self if isinstance(event, Delta)])

    async def stop(self) -> None:
        """Stops the turn on the server; who iterates it gets `TurnEnded`. After its end: nothing."""
        await cancel_turn(self._connection, self.conversation_id, self.request_id, timeout_s=self._timeout_s)

    async def _open(self, timeout_s: float) -> grpc.aio.UnaryStreamCall[Any, Any]:
        stub = ChatServiceStub(self._connection.channel)
        method: Any = stub.StreamChat if isinstance(self._request, StreamChatRequest) else stub.ResumeChat
        metadata = await self._connection.metadata(self.request_id)
        call: grpc.aio.UnaryStreamCall[Any, Any] = method(
            self._request, metadata=metadata, timeout=max(0.0, timeout_s)
        )
        return call

    async def _next(self, call: grpc.aio.UnaryStreamCall[Any, Any]) -> ChatEvent:
        """The next event that was not seen yet. Unavailable where the stream was cut off."""
        while True:
            try:
                message: Any = await call.read()
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, self._connection.address) from None
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                message = grpc.aio.EOF  # the other end broke it off
            if message is grpc.aio.EOF:
                self._reached = True
                raise Unavailable("The connection was lost in the middle of the answer.")
            seen = self._request.after_seq
            if message.seq > seen + 1:
                raise Unavailable(f"The event {seen + 1} of the answer is missing.")
            if message.seq <= seen:
                continue
            self._request.after_seq = message.seq
            self._reached, self._renewed = True, False
            event = events.read(message)
            self._over = isinstance(event, Done | WeftError)
            if isinstance(event, WeftError):
                raise event
            if event is not None:
                return event

    def _may_go_on(self, failure: WeftError) -> bool:
        if isinstance(failure, Unauthenticated):
            self._renewed, renewed = True, self._renewed
            return self._connection.can_renew_token and not renewed
        return is_transient(failure)

    def _leave(self) -> asyncio.Task[None]:
        if self._leaving is None:
            self._leaving = self._connection.spawn(
                leave_turn(self._connection, self.conversation_id, self.request_id)
            )
        return self._leaving


async def _read_out(call: grpc.aio.UnaryStreamCall[Any, Any]) -> None:
    """Lets the server end a call whose last event has come: broken off, it would count as cancelled."""
    try:
        async with asyncio.timeout(_END_WITHIN_S):
            await call.read()
    except (grpc.aio.AioRpcError, TimeoutError):
        return
    except asyncio.CancelledError:
        if being_cancelled():
            raise


def is_transient(failure: WeftError) -> bool:
    """Whether a turn may go on after this: the connection broke, or the server asks to come again."""
    kind_fits = isinstance(failure, Unavailable | ResourceExhausted) or type(failure) is WeftError
    return kind_fits and failure.reason in _TRANSIENT


async def cancel_turn(
    connection: Connection, conversation_id: str, request_id: str, *, timeout_s: float
) -> bool:
    """Stops a turn; False where it had ended before."""
    response = await connection.unary(
        ChatServiceStub(connection.channel).CancelTurn,
        CancelTurnRequest(conversation_id=conversation_id, request_id=request_id),
        timeout_s=timeout_s,
    )
    return response.status == "cancelled"


async def leave_turn(connection: Connection, conversation_id: str, request_id: str) -> None:
    """Stops a turn that nobody reads any more, within a bounded time; fails silently."""
    try:
        async with asyncio.timeout(_CANCEL_WITHIN_S):
            for pause in _CANCEL_PAUSES_S:
                try:
                    await cancel_turn(connection, conversation_id, request_id, timeout_s=_CANCEL_WITHIN_S)
                    return
                except NotFound:  # it overtook the question
                    await asyncio.sleep(pause)
    except (WeftError, TimeoutError):
        return  # the server ends the turn by itself when its client stays away

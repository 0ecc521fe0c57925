"""Many turns on one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import grpc

from weft import events
from weft.connection import Connection, Outcome, being_cancelled, new_id, pause_s
from weft.errors import TurnEnded, Unauthenticated, Unavailable, WeftError, from_rpc
from weft.events import ChatEvent, Done
from weft.turn import is_transient, leave_turn, turn_request
from weft.v1.chat_pb2 import CancelTurnRequest, ConverseRequest, ConverseResponse, StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

# Events of a turn that nobody has read yet; then the whole stream waits for its reader.
_MOST_UNREAD: Final = 256


class Converse:
    """One stream for many turns, opened at the first; turns of different conversations may run at once.

        async with weft.converse() as talk:
            async for event in talk.ask("conv_1", "And who founded it?"):
                ...

    Lost connections and servers that stop are handled as in `Turn`. Read every turn that you ask
    for, or leave its loop: a turn that is not read stops the others.
    """

    def __init__(self, connection: Connection, resume_for_s: float) -> None:
        self._connection = connection
        self._resume_for_s = resume_for_s
        self._turns: dict[tuple[str, str], _Running] = {}
        self._wanted = asyncio.Event()
        self._writing = asyncio.Lock()
        self._call: Any = None
        self._runner: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._runner = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for turn in tuple(self._turns.values()):
            await self._interrupt(turn)
            turn.drop_unread()
            turn.unread.put_nowait(TurnEnded("Its stream was closed, which stopped the turn."))
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    async def ask(
        self,
        conversation_id: str,
        question: str | Sequence[Message],
        *,
        request_id: str | None = None,
        dataset_ids: Sequence[str] = (),
        top_k: int = 0,
        temperature: float | None = None,
        model_id: str = "",
        use_graph_rag: bool = False,
        use_cache: bool = False,
        stream: bool = True,
    ) -> AsyncGenerator[ChatEvent, None]:
        """Asks a question and yields the events of its answer; as `Weft.chat`."""
        turn = _Running(
            turn_request(
                conversation_id,
                question,
                request_id=request_id,
                dataset_ids=dataset_ids,
                top_k=top_k,
                temperature=temperature,
                model_id=model_id,
                use_graph_rag=use_graph_rag,
                use_cache=use_cache,
                stream=stream,
            )
        )
        self._turns[turn.key] = turn
        over = False
        try:
            self._wanted.set()
            await self._send(turn)
            while not over:
                event = await turn.unread.get()
                over = isinstance(event, Done | WeftError)
                if isinstance(event, WeftError):
                    raise event
                yield event
        finally:
            del self._turns[turn.key]
            turn.drop_unread()
            if not over:
                await asyncio.shield(self._connection.spawn(self._interrupt(turn)))

    async def _run(self) -> None:
        """Keeps a stream open while there are turns."""
        loop = asyncio.get_running_loop()
        attempt, lost_at, renewed = 0, 0.0, False
        while True:
            await self._wanted.wait()
            try:
                async for _ in self._read():
                    attempt, renewed = 0, False
                failure: WeftError = Unavailable("The connection was lost in the middle of the answer.")
            except WeftError as error:
                failure = error
            self._wanted.clear()
            if not self._turns:
                continue
            self._wanted.set()
            if attempt == 0:
                lost_at = loop.time()
            wait_s = pause_s(attempt, failure)
            attempt += 1
            may_renew = isinstance(failure, Unauthenticated) and self._connection.can_renew_token
            lasting = not is_transient(failure) and not (may_renew and not renewed)
            renewed = renewed or may_renew
            if lasting or loop.time() + wait_s > lost_at + self._resume_for_s:
                for turn in tuple(self._turns.values()):
                    await turn.unread.put(failure)
                self._wanted.clear()
                attempt = 0
            else:
                await asyncio.sleep(wait_s)

    async def _read(self) -> AsyncGenerator[None, None]:
        """Opens a stream, asks again for what runs, hands out its events; yields after each."""
        metadata = await self._connection.metadata(new_id())
        call = ChatServiceStub(self._connection.channel).Converse(metadata=metadata)
        outcome = Outcome(call)
        try:
            async with self._writing:
                while unsent := [turn for turn in self._turns.values() if turn.sent_on is not call]:
                    await _put(call, unsent[0])
                self._call = call
            while (message := await call.read()) is not grpc.aio.EOF:
                assert isinstance(message, ConverseResponse)
                if message.WhichOneof("kind") == "go_away":
                    # What runs is finished here; what is asked from now on waits for the next stream.
                    self._call = None
                    await call.done_writing()
                else:
                    await self._hand_out(message)
                yield
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError):
                raise from_rpc(outcome.error(error), self._connection.address) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
        finally:
            self._call = None
            call.cancel()

    async def _hand_out(self, message: ConverseResponse) -> None:
        turn = self._turns.get((message.conversation_id, message.request_id))
        if turn is None or message.event.seq <= turn.request.after_seq:
            return
        if message.event.seq > turn.request.after_seq + 1:
            raise Unavailable("An event of the answer is missing.")
        event = events.read(message.event)
        if isinstance(event, WeftError) and event.reason == "DRAINING":
            return  # the next stream takes the turn
        turn.request.after_seq = message.event.seq
        if event is not None:
            await turn.unread.put(event)

    async def _send(self, turn: _Running) -> None:
        """Asks on the open stream. Where there is none, the next one begins with every turn."""
        async with self._writing:
            if self._call is not None and turn.sent_on is not self._call:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await _put(self._call, turn)

    async def _interrupt(self, turn: _Running) -> None:
        conversation_id, request_id = turn.key
        async with self._writing:
            if self._call is not None and turn.sent_on is self._call:
                stop = CancelTurnRequest(conversation_id=conversation_id, request_id=request_id)
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._call.write(ConverseRequest(interrupt=stop))
                    return
        await leave_turn(self._connection, conversation_id, request_id)


async def _put(call: Any, turn: _Running) -> None:
    turn.sent_on = call
    await call.write(ConverseRequest(turn=turn.request))


class _Running:
    """A turn that runs: its request, with the last event that came, and its unread events."""

    def __init__(self, request: StreamChatRequest) -> None:
        self.request = request
        self.key = (request.conversation_id, request.request_id)
        self.unread: asyncio.Queue[ChatEvent | WeftError] = asyncio.Queue(_MOST_UNREAD)
        self.sent_on: Any = None

    def drop_unread(self) -> None:
        """Makes room, so that whoever waits to put an event goes on."""
        while not self.unread.empty():
            self.unread.get_nowait()

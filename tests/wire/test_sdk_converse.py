"""Many turns on one stream of the SDK, over lost connections and servers that stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from weft import Delta, TurnEnded, Unavailable, Weft
from weft.v1 import chat_pb2, chat_pb2_grpc

EVENTS = [
    *(chat_pb2.ChatEvent(type="delta", content=f"{seq} ", seq=seq) for seq in range(1, 6)),
    chat_pb2.ChatEvent(type="done", seq=6),
]
TEXT = "1 2 3 4 5 "


class Chat(chat_pb2_grpc.ChatServiceServicer):
    def __init__(self) -> None:
        self.streams = 0
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.stops = asyncio.Event()
        self.cut_after: list[int] = []
        self.go_away_after = 0
        self.down = False

    async def Converse(
        self, requests: AsyncIterator[chat_pb2.ConverseRequest], context: Any
    ) -> AsyncIterator[chat_pb2.ConverseResponse]:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")
        self.streams += 1
        out: asyncio.Queue[chat_pb2.ConverseResponse | None] = asyncio.Queue()
        running: dict[str, asyncio.Task[None]] = {}

        async def take() -> None:
            async for request in requests:
                match request.WhichOneof("kind"):
                    case "turn":
                        turn = request.turn
                        if turn.request_id not in self.started:
                            self.started.append(turn.request_id)
                        assert turn.request_id not in running
                        running[turn.request_id] = asyncio.create_task(answer(turn, out))
                    case "interrupt":
                        self.stopped.append(request.interrupt.request_id)
                        self.stops.set()
                        running[request.interrupt.request_id].cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)
            await out.put(None)

        async def answer(turn: chat_pb2.StreamChatRequest, out: asyncio.Queue[Any]) -> None:
            endless = turn.messages[0].content == "endless"
            for seq in range(turn.after_seq + 1, 10**6 if endless else 7):
                event = chat_pb2.ChatEvent(type="delta", seq=seq) if endless else EVENTS[seq - 1]
                await out.put(
                    chat_pb2.ConverseResponse(
                        conversation_id=turn.conversation_id, request_id=turn.request_id, event=event
                    )
                )
                await asyncio.sleep(0.002)

        taking = asyncio.create_task(take())
        sent = 0
        try:
            while (response := await out.get()) is not None:
                yield response
                sent += 1
                if self.go_away_after and sent == self.go_away_after:
                    self.go_away_after = 0
                    yield chat_pb2.ConverseResponse(go_away=chat_pb2.GoAway(reason="draining", grace_ms=100))
                if self.cut_after and sent == self.cut_after[0]:
                    self.cut_after.pop(0)
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        finally:
            for task in (taking, *running.values()):
                task.cancel()
            await asyncio.gather(taking, *running.values(), return_exceptions=True)

    async def CancelTurn(self, request: Any, context: Any) -> chat_pb2.CancelTurnResponse:
        self.stopped.append(request.request_id)
        self.stops.set()
        return chat_pb2.CancelTurnResponse(status="cancelled")


@pytest.fixture
async def chat() -> Chat:
    return Chat()


@pytest.fixture
async def weft(chat: Chat) -> AsyncIterator[Weft]:
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Weft(f"127.0.0.1:{port}", token="t", resume_for_s=1) as weft:
        yield weft
    await server.stop(None)


async def text(events: AsyncIterator[Any]) -> str:
    return "".join([event.text async for event in events if isinstance(event, Delta)])


async def test_turns_share_a_stream(weft: Weft, chat: Chat) -> None:
    async with weft.converse() as talk:
        assert await text(talk.ask("conv_1", "a")) == TEXT
        assert await asyncio.gather(*(text(talk.ask(f"conv_{i}", "b")) for i in range(5))) == [TEXT] * 5
    assert chat.streams == 1
    assert len(chat.started) == 6
    assert chat.stopped == []


async def test_a_cut_goes_unnoticed_by_every_turn(weft: Weft, chat: Chat) -> None:
    chat.cut_after = [1, 2, 3, 4, 5]
    async with weft.converse() as talk:
        assert await asyncio.gather(*(text(talk.ask(f"conv_{i}", "a")) for i in range(3))) == [TEXT] * 3
    assert len(chat.started) == 3
    assert chat.streams == 6


async def test_a_server_that_stops_is_left_for_another(weft: Weft, chat: Chat) -> None:
    chat.go_away_after = 2
    async with weft.converse() as talk:
        assert await text(talk.ask("conv_1", "a")) == TEXT
        assert await text(talk.ask("conv_1", "b")) == TEXT
    assert chat.streams == 2


async def test_leaving_a_turn_interrupts_it_and_no_other(weft: Weft, chat: Chat) -> None:
    async with weft.converse() as talk:
        other = asyncio.create_task(text(talk.ask("conv_2", "a", request_id="r-2")))
        async for event in talk.ask("conv_1", "endless", request_id="r-1"):
            if event.seq == 3:
                break
        assert await other == TEXT
        async with asyncio.timeout(2):
            await chat.stops.wait()
        assert await text(talk.ask("conv_3", "a")) == TEXT
    assert chat.stopped == ["r-1"]


async def test_leaving_the_talk_interrupts_what_runs(weft: Weft, chat: Chat) -> None:
    async with weft.converse() as talk:
        events = talk.ask("conv_1", "endless", request_id="r-1")
        await anext(events)
    async with asyncio.timeout(2):
        await chat.stops.wait()
    assert set(chat.stopped) == {"r-1"}
    with pytest.raises(TurnEnded):
        async for _ in events:
            pass


async def test_a_stream_that_stays_away_is_given_up(weft: Weft, chat: Chat) -> None:
    async with weft.converse() as talk:
        chat.down = True
        with pytest.raises(Unavailable):
            await text(talk.ask("conv_1", "a"))
        chat.down = False
        assert await text(talk.ask("conv_1", "a")) == TEXT

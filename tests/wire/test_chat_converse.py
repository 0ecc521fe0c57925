"""Many turns on one stream, over real calls."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.servers.chat_client import TEXT, Chat, chatting, refusal, rest
from tests.servers.chat_room import WORDS, question, text_of, until
from tests.servers.chat_server import bearer, chat_stub
from weft.v1 import chat_pb2
from weft.v1.chat_pb2 import ConverseRequest, ConverseResponse


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Chat]:
    async with chatting(tmp_path) as client:
        yield client


def turn(name: str, **more: Any) -> ConverseRequest:
    return ConverseRequest(turn=question(conversation_id=name, request_id=f"r-{name}", **more))


async def events_of(call: Any) -> dict[str, list[chat_pb2.ChatEvent]]:
    events: dict[str, list[chat_pb2.ChatEvent]] = {}
    async for response in rest(call):
        assert response.request_id == f"r-{response.conversation_id}"
        events.setdefault(response.conversation_id, []).append(response.event)
    return events


def converse(chat: Chat) -> Any:
    return chat.stub.Converse(metadata=chat.metadata)


async def test_converse_answers_several_turns_and_ends_after_half_close(chat: Chat) -> None:
    call = converse(chat)
    for number in range(3):
        await call.write(turn(f"c{number}"))
    await call.write(ConverseRequest(turn=question(conversation_id="bad id", request_id="r-bad id")))
    await call.done_writing()
    chat.model.allow()
    events = await events_of(call)
    bad = events.pop("bad id")
    assert [(event.type, event.reason, event.seq) for event in bad] == [("error", "INVALID_FIELD", 0)]
    for got in (events[f"c{number}"] for number in range(3)):
        assert text_of(got) == TEXT
        assert got[-1].type == "done"


async def test_converse_interrupts_and_goes_on(chat: Chat) -> None:
    call = converse(chat)
    await call.write(turn("c1"))
    chat.model.allow(1)
    assert (await call.read()).event.content == WORDS[0]
    asked = time.monotonic()
    await call.write(
        ConverseRequest(interrupt=chat_pb2.CancelTurnRequest(conversation_id="c1", request_id="r-c1"))
    )
    assert (await call.read()).event.reason == "TURN_CANCELLED"
    await chat.closed(asked)
    await call.write(
        ConverseRequest(interrupt=chat_pb2.CancelTurnRequest(conversation_id="none", request_id="r"))
    )
    assert (await call.read()).event.reason == "CONVERSATION_NOT_FOUND"
    await call.write(turn("c2"))
    await call.done_writing()
    assert text_of((await events_of(call))["c2"]) == TEXT


async def test_converse_takes_sixteen_turns_at_once(chat: Chat) -> None:
    call = converse(chat)
    for number in range(17):
        await call.write(turn(f"c{number}"))
    refused: ConverseResponse = await call.read()
    assert (refused.conversation_id, refused.event.reason) == ("c16", "OVERLOADED")
    chat.model.allow()
    await call.done_writing()
    assert len(await events_of(call)) == 16


async def test_a_turn_of_an_earlier_stream_is_resumed(chat: Chat) -> None:
    channel, stub = chat_stub(chat.server.address)
    first = stub.Converse(metadata=chat.metadata)
    await first.write(turn("c1", resumable=True))
    chat.model.allow(2)
    got = [(await first.read()).event, (await first.read()).event]
    ack = chat_pb2.Acknowledgement(conversation_id="c1", request_id="r-c1", seq=2)
    await first.write(ConverseRequest(ack=ack))
    await channel.close(None)
    second = converse(chat)
    resume = chat_pb2.ResumeChatRequest(conversation_id="c1", request_id="r-c1", after_seq=2, resumable=True)
    await second.write(ConverseRequest(resume=resume))
    await second.done_writing()
    chat.model.allow()
    got += (await events_of(second))["c1"]
    assert text_of(got) == TEXT
    assert [event.seq for event in got] == list(range(1, len(got) + 1))
    assert len(chat.model.requests) == 1


async def test_a_cancelled_converse_closes_the_models(chat: Chat) -> None:
    call = converse(chat)
    for name in ("c1", "c2"):
        await call.write(turn(name))
    chat.model.allow(2)
    await call.read()
    await until(lambda: chat.model.open == 2)
    left = time.monotonic()
    call.cancel()
    await chat.closed(left)


async def test_a_draining_server_says_go_away_and_finishes(chat: Chat) -> None:
    call, idle = converse(chat), converse(chat)
    await call.write(turn("c1"))
    await idle.write(turn("c9"))
    chat.model.allow(6)
    assert (await call.read()).event.seq == 1
    while (await idle.read()).event.type != "done":
        chat.model.allow(1)
    chat.server.drain.begin()
    gone = await idle.read()
    assert (gone.go_away.reason, gone.go_away.grace_ms) == ("draining", 1000)
    assert await idle.read() is grpc.aio.EOF
    chat.model.allow()
    later = [response async for response in rest(call)]
    assert any(response.HasField("go_away") for response in later)
    assert [response.event.type for response in later if response.HasField("event")][-1] == "done"
    assert await refusal(chat.ask(question(request_id="new", conversation_id="new"))) == (
        grpc.StatusCode.UNAVAILABLE,
        "DRAINING",
    )


async def test_a_token_that_runs_out_ends_converse(chat: Chat) -> None:
    call = chat.stub.Converse(metadata=bearer(chat.keys, ttl_s=1.2))
    await call.write(turn("c1"))
    chat.model.allow(1)
    await call.read()
    assert await refusal(call) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    await until(lambda: chat.model.open == 0)

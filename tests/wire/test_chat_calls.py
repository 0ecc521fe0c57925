"""Chat over real calls: streams, cuts, cancels, deadlines."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.servers.chat_client import CLOSED_WITHIN_S, TEXT, Chat, chatting, refusal, rest, take
from tests.servers.chat_room import question, text_of, until
from tests.servers.chat_server import WORDS as MANY_WORDS
from tests.servers.chat_server import bearer, chat_stub
from weft.v1 import chat_pb2, chat_pb2_grpc
from weft.v1.common_pb2 import Message
from weftd.keys import ensure_keys


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Chat]:
    async with chatting(tmp_path) as client:
        yield client


async def test_a_turn_over_the_wire(chat: Chat) -> None:
    chat.model.allow()
    call = chat.stub.StreamChat(
        chat_pb2.StreamChatRequest(messages=[Message(role="user", content="hi")], use_graph_rag=True),
        metadata=[*chat.metadata, ("x-request-id", "my-id")],
    )
    events = [event async for event in call]
    assert text_of(events) == TEXT
    assert list(events[-1].degraded) == ["graph"]
    request = chat_pb2.GetConversationRequest(conversation_id="conv_my-id", page_size=1)
    first = await chat.stub.GetConversation(request, metadata=chat.metadata)
    request.page_token = first.next_page_token
    second = await chat.stub.GetConversation(request, metadata=chat.metadata)
    messages = [*first.messages, *second.messages]
    assert [(message.role, message.content) for message in messages] == [("user", "hi"), ("assistant", TEXT)]
    assert messages[1].status == "complete"
    assert len(messages[1].references) == 2
    listed = await chat.stub.ListConversations(chat_pb2.ListConversationsRequest(), metadata=chat.metadata)
    assert [each.title for each in listed.conversations] == ["hi"]
    await chat.stub.DeleteConversation(
        chat_pb2.DeleteConversationRequest(conversation_id="conv_my-id"), metadata=chat.metadata
    )
    listed = await chat.stub.ListConversations(chat_pb2.ListConversationsRequest(), metadata=chat.metadata)
    assert not listed.conversations


@pytest.mark.parametrize("cut", range(8))
async def test_a_connection_cut_after_every_event(chat: Chat, cut: int) -> None:
    channel, stub = chat_stub(chat.server.address)
    call = stub.StreamChat(question(resumable=True), metadata=chat.metadata)
    got: list[chat_pb2.ChatEvent] = []
    if cut == 0:
        await until(lambda: chat.model.open == 1)
    got += await take(call, chat.model, cut)
    await channel.close(None)
    again = chat.ask(question(resumable=True, after_seq=cut)) if cut % 2 else chat.resume(cut)
    chat.model.allow()
    got += [event async for event in again]
    assert text_of(got) == TEXT
    assert [event.seq for event in got] == list(range(1, len(got) + 1))
    assert len(chat.model.requests) == 1


async def test_a_cancelled_call_closes_the_model(chat: Chat) -> None:
    call = chat.ask()
    await take(call, chat.model, 2)
    left = time.monotonic()
    call.cancel()
    await chat.closed(left)
    events = [event async for event in chat.resume(2)]
    assert [(event.reason, event.seq) for event in events] == [("TURN_CANCELLED", 3)]


async def test_a_cancelled_call_closes_the_search(chat: Chat) -> None:
    chat.search.stuck = True
    call = chat.ask()
    await until(lambda: bool(chat.search.requests))
    left = time.monotonic()
    call.cancel()
    await until(lambda: bool(chat.search.closed_at))
    assert chat.search.closed_at[0] - left < CLOSED_WITHIN_S
    assert not chat.model.requests


async def test_a_lost_connection_of_a_resumable_turn(chat: Chat) -> None:
    channel, stub = chat_stub(chat.server.address)
    await take(stub.StreamChat(question(resumable=True), metadata=chat.metadata), chat.model, 1)
    left = time.monotonic()
    await channel.close(None)
    await chat.closed(left, within_s=0.3 + 1)
    assert chat.model.closed_at[0] - left > 0.25


async def test_cancel_turn_stops_it_for_every_reader(chat: Chat) -> None:
    call, other = chat.ask(question(resumable=True)), None
    await take(call, chat.model, 1)
    other = chat.resume()
    await other.read()
    asked = time.monotonic()
    request = chat_pb2.CancelTurnRequest(conversation_id="c1", request_id="r1")
    assert (await chat.stub.CancelTurn(request, metadata=chat.metadata)).status == "cancelled"
    await chat.closed(asked)
    for reader in (call, other):
        assert [event.reason async for event in rest(reader)] == ["TURN_CANCELLED"]
    assert (await chat.stub.CancelTurn(request, metadata=chat.metadata)).status == "ended"


async def test_a_passed_deadline(chat: Chat) -> None:
    started = time.monotonic()
    call = chat.ask(question(resumable=True), timeout=0.4)
    await take(call, chat.model, 1)
    await until(lambda: chat.model.open == 0)
    assert chat.model.closed_at[0] - started - 0.4 < CLOSED_WITHIN_S
    await until(lambda: chat.server.turns.running == 0)
    events = [event async for event in chat.resume(1)]
    assert [event.reason for event in events] == ["DEADLINE_EXCEEDED"]


async def test_what_is_wrong_before_the_first_event_is_a_status(chat: Chat) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    many = {"messages": [Message(role="user", content="?")] * 201, "request_id": "r"}
    bad = [
        chat_pb2.StreamChatRequest(),
        question("  "),
        question("x" * 32_001),
        question("a\0b"),
        question(top_k=51),
        question(temperature=2.1),
        question(temperature=float("nan")),
        question(conversation_id="a b"),
        question(request_id="é"),
        question(dataset_ids=["../x"]),
        chat_pb2.StreamChatRequest(**many),
        chat_pb2.StreamChatRequest(messages=[Message(role="assistant", content="?")]),
        chat_pb2.StreamChatRequest(messages=[Message(role="tool", content="?")]),
    ]
    for request in bad:
        assert await refusal(chat.ask(request)) == (invalid, "INVALID_FIELD")
    call = chat.ask()
    await take(call, chat.model, 1)
    assert await refusal(chat.ask(question(request_id="r2"))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "TURN_RUNNING",
    )
    assert await refusal(chat.ask(question("Other?"))) == (invalid, "REQUEST_ID_REUSED")
    assert await refusal(chat.resume(request_id="r9")) == (grpc.StatusCode.NOT_FOUND, "TURN_NOT_FOUND")


async def test_another_tenant_finds_nothing_by_any_call(chat: Chat) -> None:
    chat.model.allow()
    assert [event async for event in chat.ask()]
    chat.metadata = bearer(chat.keys, "other")
    stub, name = chat.stub, {"conversation_id": "c1"}
    key = {**name, "request_id": "r1"}
    calls = [
        chat.resume(),
        stub.CancelTurn(chat_pb2.CancelTurnRequest(**key), metadata=chat.metadata),
        stub.RateAnswer(chat_pb2.RateAnswerRequest(**key, rating="up"), metadata=chat.metadata),
        stub.GetConversation(chat_pb2.GetConversationRequest(**name), metadata=chat.metadata),
        stub.DeleteConversation(chat_pb2.DeleteConversationRequest(**name), metadata=chat.metadata),
    ]
    for call in calls:
        assert await refusal(call) == (grpc.StatusCode.NOT_FOUND, "CONVERSATION_NOT_FOUND")
    listed = await stub.ListConversations(chat_pb2.ListConversationsRequest(), metadata=chat.metadata)
    assert not listed.conversations
    # The same ids are free for them.
    chat.model.allow()
    assert text_of([event async for event in chat.ask()]) == TEXT


async def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    url, keys = f"sqlite:///{tmp_path / 'records.db'}", tmp_path / "jwks.json"
    ensure_keys(keys)
    got: list[chat_pb2.ChatEvent] = []
    for after in (9, 1_000):
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.servers.chat_server", url, str(keys), stdout=asyncio.subprocess.PIPE
        )
        assert server.stdout is not None
        channel, stub = chat_stub((await server.stdout.readline()).decode().strip())
        try:
            await read_some(stub, bearer(keys), got, after)
        finally:
            server.kill()
            await server.wait()
            await channel.close()
    assert text_of(got) == "".join(MANY_WORDS)
    assert [event.seq for event in got] == list(range(1, len(got) + 1))
    assert got[-1].type == "done"


async def read_some(
    stub: chat_pb2_grpc.ChatServiceStub,
    metadata: list[tuple[str, str]],
    got: list[chat_pb2.ChatEvent],
    most: int,
) -> None:
    request = question(resumable=True, after_seq=len(got))
    async for event in stub.StreamChat(request, metadata=metadata):
        got.append(event)
        most -= 1
        if not most:
            return

"""Chat over real calls: streams, cuts, cancels, deadlines, and many turns on one stream."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.servers.chat_room import WORDS, ScriptedModel, ScriptedSearch, question, text_of, until
from tests.servers.chat_server import WORDS as MANY_WORDS
from tests.servers.chat_server import ChatServer, bearer, chat_stub, running_chat
from weft.v1 import chat_pb2, chat_pb2_grpc
from weft.v1.chat_pb2 import ConverseRequest, ConverseResponse
from weft.v1.common_pb2 import Message
from weftd.keys import ensure_keys
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

TEXT = "".join(WORDS)
CLOSED_WITHIN_S = 0.05


class Chat:
    """A server, a client of it, and what is behind it."""

    def __init__(self, server: ChatServer, keys: Path, model: ScriptedModel, search: ScriptedSearch) -> None:
        self.server, self.keys, self.model, self.search = server, keys, model, search
        self.channel, self.stub = chat_stub(server.address)
        self.metadata = bearer(keys)

    def ask(self, request: chat_pb2.StreamChatRequest | None = None, **options: Any) -> Any:
        return self.stub.StreamChat(request or question(), metadata=self.metadata, **options)

    def resume(self, after_seq: int = 0, **more: Any) -> Any:
        key = {"conversation_id": "c1", "request_id": "r1"} | more
        request = chat_pb2.ResumeChatRequest(**key, after_seq=after_seq, resumable=True)
        return self.stub.ResumeChat(request, metadata=self.metadata)

    async def closed(self, since: float, within_s: float = CLOSED_WITHIN_S) -> None:
        """The model behind was closed in time and wrote nothing afterwards."""
        await until(lambda: self.model.open == 0)
        assert self.model.closed_at[-1] - since < within_s
        written = self.model.written
        self.model.allow()
        await until(lambda: self.server.turns.running == 0)
        assert self.model.written == written


@pytest.fixture
async def chat(tmp_path: Path) -> AsyncIterator[Chat]:
    url, keys = f"sqlite:///{tmp_path / 'records.db'}", tmp_path / "jwks.json"
    ensure_keys(keys)
    migrate(url)
    records, model, search = Records(url), ScriptedModel(paced=True), ScriptedSearch()
    async with running_chat(records, keys, model, search, resume_grace_s=0.3) as server:
        client = Chat(server, keys, model, search)
        yield client
        await client.channel.close()
    await records.close()


async def take(call: Any, model: ScriptedModel, count: int) -> list[chat_pb2.ChatEvent]:
    got = []
    for _ in range(count):
        model.allow(1)
        got.append(await call.read())
    return got


async def rest(call: Any) -> AsyncIterator[Any]:
    """What is still to come, for a call that is read message by message."""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


def reason(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(value).details[0].Unpack(info)
            return info.reason
    return ""


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if hasattr(call, "read"):
            async for _ in rest(call):
                pass
        else:
            await call
    return raised.value.code(), reason(raised.value)


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

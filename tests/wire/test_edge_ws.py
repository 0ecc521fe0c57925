"""Chat over WebSocket, against a chat service that does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from weft.v1 import chat_pb2, chat_pb2_grpc
from weftd.edge import ChatSockets, build_app, serve
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain

EVENTS = [
    chat_pb2.ChatEvent(type="delta", content="第一 <b>", seq=1),
    chat_pb2.ChatEvent(type="refs", references=[{"id": 1, "name": "a.md", "score": 0.3}], seq=2),
    chat_pb2.ChatEvent(type="done", usage={"total_tokens": 3}, seq=3),
]
PRINTED = [
    '{"type":"delta","content":"第一 <b>","seq":1,"conversation_id":"c","request_id":"r"}',
    '{"type":"refs","references":[{"id":1,"name":"a.md","score":0.3}],"seq":2,'
    '"conversation_id":"c","request_id":"r"}',
    '{"type":"done","usage":{"total_tokens":3},"seq":3,"conversation_id":"c","request_id":"r"}',
]
TURN = {
    "type": "turn",
    "conversation_id": "c",
    "request_id": "r",
    "messages": [{"role": "user", "content": "?"}],
}


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Answers a turn with `EVENTS`, or as its question says."""

    def __init__(self) -> None:
        self.requests: list[chat_pb2.ConverseRequest] = []
        self.metadata: list[tuple[str, Any]] = []
        self.came = asyncio.Event()
        self.ended = asyncio.Event()
        self.written = 0

    async def Converse(
        self, requests: AsyncIterator[chat_pb2.ConverseRequest], context: Any
    ) -> AsyncIterator[chat_pb2.ConverseResponse]:
        self.metadata = list(context.invocation_metadata())
        if ("authorization", "Bearer good") not in self.metadata:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no", (("x-request-id", "1"),))
        try:
            async for request in requests:
                self.requests.append(request)
                self.came.set()
                async for event in self._events(request, context):
                    self.written += 1
                    yield chat_pb2.ConverseResponse(conversation_id="c", request_id="r", event=event)
        finally:
            self.ended.set()

    async def _events(
        self, request: chat_pb2.ConverseRequest, context: Any
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        if request.WhichOneof("kind") != "turn":
            return
        match request.turn.messages[0].content:
            case "endless":
                while True:
                    yield chat_pb2.ChatEvent(type="delta", content="x" * 10_000, seq=1)
            case "hang":
                await asyncio.Event().wait()
            case "expire":
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "over")
            case "down":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            case _:
                for event in EVENTS:
                    yield event


class Edge:
    def __init__(self, url: str, chat: Chat, drain: Drain) -> None:
        self.url = url
        self.chat = chat
        self.drain = drain

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[ClientConnection]:
        """A socket that has sent its token."""
        async with connect(self.url, **options) as socket:
            await say(socket, {"type": "start", "token": "good"})
            yield socket


async def say(socket: ClientConnection, fields: dict[str, Any]) -> None:
    await socket.send(json.dumps(fields))


async def heard(socket: ClientConnection) -> dict[str, Any]:
    message = json.loads(await asyncio.wait_for(socket.recv(), 10))
    assert isinstance(message, dict)
    return message


async def closed(socket: ClientConnection) -> tuple[int, str]:
    """How the server closed it, when all that it sent before has been read."""
    with pytest.raises(ConnectionClosed) as ended:
        async with asyncio.timeout(10):
            while True:
                await socket.recv()
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    chat, drain, peers = Chat(), Drain(1.5), Peers()
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stub = peers.stub(chat_pb2_grpc.ChatServiceStub, "chat", f"127.0.0.1:{port}")
    sockets = ChatSockets(stub, drain, ("https://friend.example",), start_limit_s=0.3)
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = build_app(Path("nowhere"), chat=sockets)
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, on_ready=listening.set_result))
    try:
        yield Edge(f"ws://127.0.0.1:{await listening}/api/v1/chat/ws", chat, drain)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await peers.close()
        await server.stop(None)


async def test_a_turn_is_printed_as_rest_prints_it(edge: Edge) -> None:
    headers = {"x-request-id": "call-1", "x-tenant-id": "acme", "traceparent": "00-1-2-01"}
    async with edge.opened(additional_headers=headers) as socket:
        await say(socket, TURN)
        assert [await socket.recv() for _ in PRINTED] == PRINTED
        await say(socket, {"type": "ack", "conversation_id": "c", "request_id": "r", "seq": 3})
        await say(socket, {"type": "interrupt", "conversation_id": "c", "request_id": "r"})
        resume = {"conversation_id": "c", "request_id": "r", "after_seq": 2, "resumable": True}
        await say(socket, {"type": "resume", **resume})
        await say(socket, {"type": "ping"})
        assert await heard(socket) == {"type": "pong"}
        await say(socket, {"type": "end"})
        assert await closed(socket) == (1000, "")
    kinds = [request.WhichOneof("kind") for request in edge.chat.requests]
    assert kinds == ["turn", "ack", "interrupt", "resume"]
    assert edge.chat.requests[3].resume == chat_pb2.ResumeChatRequest(**resume)  # type: ignore[arg-type]
    assert headers.items() <= dict(edge.chat.metadata).items()


async def test_the_token_may_be_a_header(edge: Edge) -> None:
    async with connect(edge.url, additional_headers={"Authorization": "Bearer good"}) as socket:
        await say(socket, TURN)
        assert await socket.recv() == PRINTED[0]


@pytest.mark.parametrize(
    "first",
    [
        '{"type":"start","token":"bad"}',
        '{"type":"start","token":""}',
        '{"type":"start","token":"' + "x" * 9000 + '"}',
        '{"type":"start","token":"é\\n"}',
        '{"type":"start","token":7}',
        '{"type":"start"}',
        '{"type":"start","token":"good","more":1}',
        json.dumps(TURN),
        "no json",
        b"binary",
        None,
    ],
)
async def test_without_a_good_token_it_ends(edge: Edge, first: str | bytes | None) -> None:
    async with connect(edge.url) as socket:
        if first is not None:
            await socket.send(first)
        error = await heard(socket)
        assert (error["type"], error["reason"]) == ("error", "TOKEN_INVALID")
        assert await closed(socket) == (4401, "TOKEN_INVALID")
    assert not edge.chat.requests


async def test_the_refusal_is_told_also_where_turns_are_on_their_way(edge: Edge) -> None:
    for _ in range(30):
        async with connect(edge.url) as socket:
            await say(socket, {"type": "start", "token": "bad"})
            for _ in range(5):
                await say(socket, TURN)
            assert (await heard(socket))["reason"] == "TOKEN_INVALID"
            assert await closed(socket) == (4401, "TOKEN_INVALID")


@pytest.mark.parametrize(
    ("status", "path", "origin"),
    [
        (403, "", "https://evil.example"),
        (403, "", "null"),
        (400, "?token=good", None),
        (404, "x", None),
        (404, "/../../../../", None),
    ],
)
async def test_a_handshake_is_refused(edge: Edge, status: int, path: str, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    with pytest.raises(InvalidStatus) as refused:
        await connect(edge.url + path, additional_headers=headers)
    assert refused.value.response.status_code == status
    assert json.loads(refused.value.response.body)["message"]


@pytest.mark.parametrize("own", [True, False])
async def test_our_own_page_and_a_friend_may_ask(edge: Edge, own: bool) -> None:
    host = edge.url.split("/")[2]
    async with edge.opened(origin=f"http://{host}" if own else "https://friend.example") as socket:
        await say(socket, {"type": "ping"})
        assert await heard(socket) == {"type": "pong"}


BAD: list[str | bytes] = [
    "",
    "no json",
    "[]",
    "7",
    "null",
    "{}",
    '{"type":null}',
    '{"type":"what"}',
    '{"type":"ping","x":1}',
    '{"type":"start","token":"good"}',
    '{"type":"turn","nope":1}',
    '{"type":"turn","messages":7}',
    '{"type":"turn","messages":[{"role":"user","content":"\\ud800"}]}',
    '{"type":"turn","temperature":NaN}',
    '{"type":"turn","temperature":1' + "0" * 400 + "}",
    '{"type":"turn","request_id":"\\ud800","\\udfff":1}',
    '{"type":"\\ud800"}',
    '{"type":"turn","messages":[{"\\ud800":1}]}',
    '{"type":"turn","after_seq":-1}',
    '{"type":"turn","messages":[' + ",".join(["{}"] * 2000) + "]}",
    '{"type":"ack","seq":99999999999999999999}',
    "[" * 100_000,
    '{"type":"turn","a":' + '{"a":' * 2000 + "1" + "}" * 2001,
    b'{"type":"ping"}',
]


@pytest.mark.parametrize("message", BAD, ids=lambda message: str(message[:30]))
async def test_a_bad_message_is_told_and_the_next_is_taken(edge: Edge, message: str | bytes) -> None:
    async with edge.opened() as socket:
        await socket.send(message)
        error = await heard(socket)
        assert (error["type"], error["reason"], "seq" in error) == ("error", "INVALID_FIELD", False)
        assert 0 < len(error["message"]) < 500
        await say(socket, TURN)
        assert await socket.recv() == PRINTED[0]
    assert len(edge.chat.requests) == 1


async def test_the_error_of_a_bad_turn_names_it(edge: Edge) -> None:
    async with edge.opened() as socket:
        await say(socket, {**TURN, "colour": "red"})
        error = await heard(socket)
        assert (error["conversation_id"], error["request_id"]) == ("c", "r")
        assert "colour" in error["message"]


async def test_a_message_over_1_mib_closes_it(edge: Edge) -> None:
    async with edge.opened() as socket:
        await socket.send("x" * (1 << 20))
        assert (await heard(socket))["reason"] == "INVALID_FIELD"
        await socket.send("x" * (1 << 20) + "x")
        assert (await closed(socket))[0] == 1009


@pytest.mark.parametrize("parts", [[b"\xc3("], [b"\xe8\xaf", b"\xe6"]], ids=["whole", "in fragments"])
async def test_a_text_that_is_no_utf8_closes_it(
    edge: Edge, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async with edge.opened() as socket:
        await socket.send(parts[0] if len(parts) == 1 else iter(parts), text=True)
        assert (await closed(socket))[0] == 1007
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_fragments_without_end_close_it(edge: Edge) -> None:
    async with edge.opened() as socket:
        with contextlib.suppress(ConnectionClosed):
            await socket.send("" for _ in range(20_000))
        assert (await closed(socket))[0] == 1009


@pytest.mark.parametrize(
    ("question", "reason", "code"),
    [("expire", "TOKEN_INVALID", 4401), ("down", "BACKEND_UNAVAILABLE", 1013)],
)
async def test_how_the_call_ends_is_told(edge: Edge, question: str, reason: str, code: int) -> None:
    async with edge.opened() as socket:
        await say(socket, {**TURN, "messages": [{"role": "user", "content": question}]})
        assert (await heard(socket))["reason"] == reason
        assert await closed(socket) == (code, reason)


@pytest.mark.parametrize("politely", [True, False])
async def test_when_the_client_leaves_its_turns_have_lost_their_connection(
    edge: Edge, politely: bool
) -> None:
    async with edge.opened() as socket:
        await say(socket, {**TURN, "messages": [{"role": "user", "content": "hang"}]})
        await asyncio.wait_for(edge.chat.came.wait(), 10)
        if politely:
            await socket.close()
        else:
            socket.transport.abort()
        await asyncio.wait_for(edge.chat.ended.wait(), 5)


async def test_who_does_not_read_holds_little_and_is_still_heard(edge: Edge) -> None:
    """No event is read from the call while the client's buffers are full; an abort ends it all the same."""
    async with edge.opened(max_queue=1) as socket:
        await say(socket, {**TURN, "messages": [{"role": "user", "content": "endless"}]})
        await asyncio.wait_for(edge.chat.came.wait(), 10)
        before = -1
        async with asyncio.timeout(20):
            while before != edge.chat.written:
                before = edge.chat.written
                await asyncio.sleep(0.3)
        assert edge.chat.written * 10_000 < 16 << 20
        socket.transport.abort()
        await asyncio.wait_for(edge.chat.ended.wait(), 5)


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["weftd.edge.serve"], "_PING_S", 0.3)


@pytest.mark.usefixtures("quick_pings")
async def test_who_does_not_read_is_told_when_it_reads_again(edge: Edge) -> None:
    """Its turns have lost their connection before; nothing waits for it, and others notice nothing."""
    async with edge.opened(max_queue=1, close_timeout=0.1) as silent, edge.opened() as other:
        await say(silent, {**TURN, "messages": [{"role": "user", "content": "endless"}]})
        await asyncio.wait_for(edge.chat.ended.wait(), 10)
        await say(other, {"type": "ping"})
        assert await heard(other) == {"type": "pong"}
        messages = []
        with pytest.raises(ConnectionClosed) as ended:
            async with asyncio.timeout(10):
                while True:
                    messages.append(json.loads(await silent.recv()))
        assert [message["type"] for message in messages[:-1]] == ["delta"] * (len(messages) - 1)
        assert (messages[-1]["reason"], messages[-1]["retry_after_ms"]) == ("OVERLOADED", 1000)
        assert ended.value.rcvd is not None
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1013, "OVERLOADED")


@pytest.mark.usefixtures("quick_pings")
async def test_who_does_not_read_for_long_is_cut_off(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["weftd.edge.socket_protocol"], "_TOLD_WITHIN_S", 0.1)
    async with edge.opened(max_queue=1, close_timeout=0.1) as silent:
        await say(silent, {**TURN, "messages": [{"role": "user", "content": "endless"}]})
        await asyncio.wait_for(edge.chat.ended.wait(), 10)
        assert await edge.drain.wait_idle(5)


async def test_draining_says_go_away_and_answers_what_runs(edge: Edge) -> None:
    async with edge.opened() as socket:
        await say(socket, {"type": "ping"})
        assert await heard(socket) == {"type": "pong"}
        edge.drain.begin()
        assert await heard(socket) == {"type": "go_away", "reason": "draining", "grace_ms": 1500}
        assert await closed(socket) == (1001, "draining")
    with pytest.raises(InvalidStatus) as refused:
        await connect(edge.url)
    assert refused.value.response.status_code == 503
    assert await edge.drain.wait_idle(5)


async def test_the_request_id_of_the_handshake_is_only_for_logs(edge: Edge) -> None:
    async with edge.opened(additional_headers={"x-request-id": "é" + uuid.uuid4().hex}) as socket:
        assert (await heard(socket))["reason"] == "INVALID_FIELD"
        assert await closed(socket) == (4400, "INVALID_FIELD")

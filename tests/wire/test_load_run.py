"""`weft load` against servers that refuse, break off, stall and cut messages in the middle."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.servers.mesh import free_port
from weft.errors import ResourceExhausted, Unauthenticated, Unavailable
from weft.v1 import chat_pb2, chat_pb2_grpc
from weft.v1.common_pb2 import Message
from weftd.load import Transport
from weftd.load import run as load_run
from weftd.load.run import CannotLoad, Measured, Plan, Run
from weftd.load.stats import summarise
from weftd.load.target import Target
from weftd.load.transports import callers

ANSWER = [
    chat_pb2.ChatEvent(type="delta", content="灯塔", seq=1),
    chat_pb2.ChatEvent(type="refs", seq=2),
    chat_pb2.ChatEvent(type="done", seq=3),
]


def details(reason: str) -> bytes:
    status = status_pb2.Status(code=1, message="No.")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="weft"))
    return status.SerializeToString()


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Does what the question says."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.deleted: list[str] = []
        self.streams = 0

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.ChatEvent]:
        if dict(context.invocation_metadata())["authorization"] != "Bearer good":
            await self._abort(context, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        self.asked.append(request.conversation_id)
        match request.messages[-1].content:
            case "refused":
                await self._abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            case "fails":
                yield ANSWER[0]
                yield chat_pb2.ChatEvent(type="error", reason="MODEL_BROKEN", seq=2)
                return
            case "cut":
                yield ANSWER[0]
                return
            case "slow":
                await asyncio.sleep(0.1)
            case "silent after one" if len(self.asked) > 1:
                await asyncio.Event().wait()
        for event in ANSWER:
            yield event

    async def Converse(self, requests: Any, context: Any) -> AsyncIterator[chat_pb2.ConverseResponse]:
        self.streams += 1
        async for message in requests:
            async for event in self.StreamChat(message.turn, context):
                yield chat_pb2.ConverseResponse(
                    conversation_id=message.turn.conversation_id,
                    request_id=message.turn.request_id,
                    event=event,
                )

    async def DeleteConversation(self, request: Any, context: Any) -> chat_pb2.DeleteConversationResponse:
        self.deleted.append(request.conversation_id)
        return chat_pb2.DeleteConversationResponse()

    async def _abort(self, context: Any, code: grpc.StatusCode, reason: str) -> None:
        await context.abort(code, "No.", (("grpc-status-details-bin", details(reason)),))


@pytest.fixture
async def served() -> AsyncIterator[tuple[Chat, str]]:
    server, chat = grpc.aio.server(), Chat()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield chat, f"127.0.0.1:{port}"
    await server.stop(0)


async def loaded(address: str, *questions: str, transport: Transport = "grpc", **more: Any) -> Measured:
    plan = Plan(
        transport, Target(address), **{"token": "good", "questions": questions, "warm_up_s": 0.0, **more}
    )
    return await Run(plan).measure()


@pytest.mark.parametrize("transport", ["grpc", "converse"])
async def test_errors_are_counted_by_reason_and_do_not_stop_the_run(
    served: tuple[Chat, str], transport: Transport
) -> None:
    _, address = served
    questions = ["fine", "refused", "fails"] + (["cut"] if transport == "grpc" else [])
    result = await loaded(address, *questions, transport=transport, callers=2, requests=len(questions) * 4)
    summary = summarise(result.turns, result.began_s, result.ended_s)
    assert summary.turns == len(questions) * 4
    assert summary.answered == 4
    assert summary.errors == {"OVERLOADED": 4, "MODEL_BROKEN": 4} | (
        {"cut off": 4} if "cut" in questions else {}
    )
    assert summary.first_token_ms is not None and summary.turn_ms is not None
    assert not result.stopped


async def test_each_caller_has_a_conversation_of_its_own_and_all_are_deleted(
    served: tuple[Chat, str],
) -> None:
    chat, address = served
    result = await loaded(address, "slow", transport="converse", callers=3, requests=6)
    assert len(set(chat.asked)) == 3
    assert sorted(chat.deleted) == sorted(set(chat.asked))
    assert result.left == 0
    assert chat.streams == 3  # one for each caller, kept from turn to turn


@pytest.mark.parametrize("transport", ["grpc", "converse", "rest", "grpc-web", "ws"])
async def test_no_mesh_ends_it_with_a_line(transport: Transport) -> None:
    with pytest.raises(CannotLoad, match="Weft does not answer at"):
        await loaded(f"127.0.0.1:{free_port()}", "fine", transport=transport)


@pytest.mark.parametrize("transport", ["grpc", "converse"])
async def test_a_bad_token_ends_it_with_a_line(served: tuple[Chat, str], transport: Transport) -> None:
    with pytest.raises(CannotLoad, match="WEFT_TOKEN"):
        await loaded(served[1], "fine", transport=transport, token="bad")


async def test_an_open_loop_does_not_wait_for_answers(served: tuple[Chat, str]) -> None:
    result = await loaded(served[1], "slow", rate=100, requests=30)
    # One after the other they would take three seconds.
    assert result.ended_s - result.began_s < 1.5
    assert len(result.turns) == 30
    due = sorted(turn.intended_s - result.began_s for turn in result.turns)
    assert due == pytest.approx([number / 100 for number in range(30)])
    assert all(turn.started_s >= turn.intended_s for turn in result.turns)


async def test_what_has_to_wait_is_timed_from_when_it_was_due(
    served: tuple[Chat, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_run, "MOST_IN_FLIGHT", 2)
    result = await loaded(served[1], "slow", rate=100, duration_s=0.5)
    summary = summarise(result.turns, result.began_s, result.ended_s)
    # Two at once, a tenth of a second each: about ten of fifty.
    assert summary.turns + result.not_started == 50
    assert result.not_started > 25
    assert summary.late > 0
    assert summary.turn_ms is not None and summary.turn_ms.p99 > 250


@pytest.mark.parametrize("rate", [None, 50])
async def test_control_c_gives_what_there_is(served: tuple[Chat, str], rate: float | None) -> None:
    running = asyncio.create_task(loaded(served[1], "silent after one", rate=rate, duration_s=60))
    while len(served[0].asked) < 2:
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    result = await asyncio.wait_for(running, 10)
    assert result.stopped
    assert result.turns == []
    assert result.left == 0


@asynccontextmanager
async def http_server(answer: Callable[[bytes], list[bytes]]) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Sends the pieces that `answer` gives for each request; closes where the last one is empty."""
    connections: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(b"")
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                for piece in answer(await reader.readexactly(size)):
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)
        except EOFError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()


def chunked(kind: str, body: bytes, size: int) -> list[bytes]:
    """An answer in chunks of `size` bytes."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return [head, *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts), b"0\r\n\r\n"]


def sse() -> bytes:
    deltas = b'data: {"type":"delta","content":"\xe7\x81\xaf\xe5\xa1\x94","seq":1}\n\n'
    return deltas + b'data: {"type":"refs","references":[],"seq":2}\n\ndata: {"type":"done","seq":3}\n\n'


def frames(trailer: bytes = b"grpc-status:0\r\n") -> bytes:
    sent = [struct.pack(">BI", 0, event.ByteSize()) + event.SerializeToString() for event in ANSWER]
    return b"".join(sent) + struct.pack(">BI", 0x80, len(trailer)) + trailer


REQUEST = chat_pb2.StreamChatRequest(conversation_id="c", messages=[Message(role="user", content="?")])


async def asked(transport: Transport, address: str, times: int = 1) -> list[list[tuple[str, str]]]:
    async with callers(transport, Target(address), "good") as connect:
        caller = connect()
        return [[(event.type, event.content) async for event in caller.ask(REQUEST)] for _ in range(times)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("transport", "body"), [("rest", sse()), ("grpc-web", frames())], ids=["rest", "grpc-web"]
)
async def test_events_over_http_however_they_are_cut(transport: Transport, body: bytes, size: int) -> None:
    async with http_server(lambda _: chunked("any", body, size)) as (address, connections):
        answers = await asked(transport, address, times=3)
    assert answers == [[("delta", "灯塔"), ("refs", ""), ("done", "")]] * 3
    assert len(connections) == 1  # kept


@pytest.mark.parametrize(
    ("transport", "body"), [("rest", sse()), ("grpc-web", frames())], ids=["rest", "grpc-web"]
)
async def test_a_connection_that_is_lost_in_the_answer(transport: Transport, body: bytes) -> None:
    async with http_server(lambda _: [*chunked("any", body, 40)[:2], b""]) as (address, _):
        with pytest.raises(Unavailable, match="does not answer"):
            await asked(transport, address)


async def test_refusals_over_http_have_their_reason() -> None:
    body = b'{"code":8,"message":"No.","details":[{"@type":"x"},{"@type":"y","reason":"OVERLOADED"}]}'
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with http_server(lambda _: [head + body]) as (address, _):
        with pytest.raises(ResourceExhausted, match="OVERLOADED: No"):
            await asked("rest", address)


async def test_refusals_over_grpc_web_have_their_reason() -> None:
    packed = base64.b64encode(details("TOKEN_INVALID")).rstrip(b"=")
    fields = b"grpc-status: 16\r\ngrpc-message: No%20entry.\r\ngrpc-status-details-bin: " + packed + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + fields + b"\r\n"
    async with http_server(lambda _: [head]) as (address, _):
        with pytest.raises(Unauthenticated, match="TOKEN_INVALID: No entry"):
            await asked("grpc-web", address)
    async with http_server(lambda _: chunked("any", frames(fields), 50)) as (address, _):
        with pytest.raises(Unauthenticated, match="TOKEN_INVALID"):
            await asked("grpc-web", address)

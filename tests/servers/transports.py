"""One turn over each transport, by hand: what a client without our SDK does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
import httpx
from google.protobuf.json_format import MessageToDict, ParseDict
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.servers.chromium import PageClient, PageFailure, PageStream
from weft.connection import Outcome
from weft.v1 import chat_pb2_grpc
from weft.v1.chat_pb2 import (
    CancelTurnRequest,
    ChatEvent,
    ConverseRequest,
    ConverseResponse,
    ResumeChatRequest,
    StreamChatRequest,
)
from weft.v1.common_pb2 import Message

Asked = StreamChatRequest | ResumeChatRequest
_DETAILS = "grpc-status-details-bin"


class Refused(AssertionError):
    """An HTTP status other than 200, and the reason in its body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.reason = next((str(one["reason"]) for one in json.loads(body)["details"] if "reason" in one), "")


class Stream(Protocol):
    """The events of an answer. `read` gives None at the end; `cut` breaks the connection off."""

    async def read(self) -> ChatEvent | None: ...

    async def cut(self) -> None: ...


async def take(stream: Stream, most: int = 1_000_000) -> list[ChatEvent]:
    """The next events, to the end or at most so many."""
    events: list[ChatEvent] = []
    while len(events) < most and (event := await stream.read()) is not None:
        events.append(event)
        if event.type in ("done", "error"):
            break
    return events


def text_of(events: list[ChatEvent]) -> str:
    return "".join(event.content for event in events)


def turn(question: str, conversation_id: str = "", model_id: str = "", **more: Any) -> StreamChatRequest:
    """A question in a conversation, and with an id, of its own."""
    unique = uuid.uuid4().hex
    return StreamChatRequest(
        conversation_id=conversation_id or f"c-{unique}",
        request_id=f"r-{unique}",
        messages=[Message(role="user", content=question)],
        model_id=model_id,
        **more,
    )


def resumed(asked: StreamChatRequest, after_seq: int, resumable: bool = True) -> ResumeChatRequest:
    return ResumeChatRequest(
        conversation_id=asked.conversation_id,
        request_id=asked.request_id,
        after_seq=after_seq,
        resumable=resumable,
    )


class _Http:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._bytes = answer.aiter_bytes()
        self._held = b""

    async def cut(self) -> None:
        await self.answer.aclose()

    async def _until(self, end: bytes) -> bytes | None:
        while end not in self._held:
            try:
                self._held += await anext(self._bytes)
            except StopAsyncIteration:
                return None
        part, _, self._held = self._held.partition(end)
        return part

    async def _exactly(self, count: int) -> bytes | None:
        while len(self._held) < count:
            try:
                self._held += await anext(self._bytes)
            except StopAsyncIteration:
                return None
        part, self._held = self._held[:count], self._held[count:]
        return part


class _Sse(_Http):
    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer)
        self.printed: list[dict[str, Any]] = []

    async def read(self) -> ChatEvent | None:
        event = await self._until(b"\n\n")
        if event is None:
            return None
        self.printed.append(json.loads(event.removeprefix(b"data: ")))
        return ParseDict(self.printed[-1], ChatEvent())


class _Web(_Http):
    async def read(self) -> ChatEvent | None:
        head = await self._exactly(5)
        if head is None:
            return None
        kind, length = struct.unpack(">BI", head)
        body = await self._exactly(length)
        return ChatEvent.FromString(body) if kind == 0 and body is not None else None


class _Socket:
    """`turn` holds what named the turn of the last event that was read."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.printed: list[dict[str, Any]] = []
        self.turn: dict[str, str] = {}

    async def say(self, kind: str, **fields: Any) -> None:
        await self.connection.send(json.dumps({"type": kind, **fields}))

    async def read(self) -> ChatEvent | None:
        try:
            while (fields := json.loads(await self.connection.recv()))["type"] == "go_away":
                pass  # what runs is still answered
        except ConnectionClosed:
            return None
        self.turn = {name: fields.pop(name, "") for name in ("conversation_id", "request_id")}
        self.printed.append(fields)
        return ParseDict(fields, ChatEvent())

    async def cut(self) -> None:
        self.connection.transport.abort()


class _Rpc:
    def __init__(self, call: Any) -> None:
        self.call = call
        self._outcome = Outcome(call)

    async def read(self) -> ChatEvent | None:
        try:
            message = await self.call.read()
            while isinstance(message, ConverseResponse) and message.HasField("go_away"):
                message = await self.call.read()  # what runs is still answered
        except grpc.aio.AioRpcError as error:
            raise self._outcome.error(error) from None
        if message is grpc.aio.EOF:
            return None
        return message.event if isinstance(message, ConverseResponse) else message

    async def cut(self) -> None:
        self.call.cancel()


class Transports:
    """Asks and resumes as the holder of `token` over REST, gRPC, gRPC-Web, Converse and WebSocket; with the
    page's own client too where it has a `tab`."""

    def __init__(
        self, http: httpx.AsyncClient, channel: grpc.aio.Channel, token: str, headers: dict[str, str]
    ) -> None:
        self.http = http
        self.channel = channel
        self.token = token
        self.headers = headers
        more = tuple((name.lower(), value) for name, value in headers.items())
        self.metadata = (("authorization", f"Bearer {token}"), *more)
        self.chat = chat_pb2_grpc.ChatServiceStub(channel)
        self.tab: PageClient | None = None

    async def rest(self, asked: Asked, timeout_s: float | None = None) -> _Sse:
        path = "/api/v1/chat/resume" if isinstance(asked, ResumeChatRequest) else "/api/v1/chat/stream"
        headers = {} if timeout_s is None else {"grpc-timeout": f"{round(timeout_s * 1000)}m"}
        body = MessageToDict(asked, preserving_proto_field_name=True)
        request = self.http.build_request("POST", path, json=body, headers=headers)
        return _Sse(await _sent(self.http, request))

    async def web(self, asked: Asked) -> _Web:
        method = "ResumeChat" if isinstance(asked, ResumeChatRequest) else "StreamChat"
        message = asked.SerializeToString()
        request = self.http.build_request(
            "POST",
            f"/weft.v1.ChatService/{method}",
            content=struct.pack(">BI", 0, len(message)) + message,
            headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
        )
        return _Web(await _sent(self.http, request))

    async def page(self, asked: Asked) -> PageStream:
        assert self.tab is not None
        return self.tab.call(asked, self.headers)

    async def grpc(self, asked: Asked, timeout_s: float | None = None) -> _Rpc:
        method: Any = self.chat.ResumeChat if isinstance(asked, ResumeChatRequest) else self.chat.StreamChat
        return _Rpc(method(asked, metadata=self.metadata, timeout=timeout_s))

    async def converse(self, asked: Asked, timeout_s: float | None = None) -> _Rpc:
        call: Any = self.chat.Converse(metadata=self.metadata, timeout=timeout_s)
        stream = _Rpc(call)
        kind = "resume" if isinstance(asked, ResumeChatRequest) else "turn"
        # A call that was refused meanwhile says so when it is read.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(ConverseRequest(**{kind: asked}))
            if asked.after_seq:
                await call.done_writing()  # there may be nothing more to send: then the stream ends
        return stream

    async def ws(self, asked: Asked) -> _Socket:
        url = str(self.http.base_url).replace("http", "ws", 1).rstrip("/") + "/api/v1/chat/ws"
        socket = _Socket(await connect(url, additional_headers=self.headers, compression=None))
        await socket.say("start", token=self.token)
        kind = "resume" if isinstance(asked, ResumeChatRequest) else "turn"
        await socket.say(kind, **MessageToDict(asked, preserving_proto_field_name=True))
        if asked.after_seq:
            await socket.say("end")  # as in `converse`
        return socket

    async def cancel(self, asked: StreamChatRequest) -> str:
        request = CancelTurnRequest(conversation_id=asked.conversation_id, request_id=asked.request_id)
        answer = await self.chat.CancelTurn(request, metadata=self.metadata, timeout=10)
        return str(answer.status)

    async def stored(self, conversation_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/conversations/{conversation_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


async def _sent(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    answer = await http.send(request, stream=True)
    if answer.status_code != 200:
        raise Refused(answer.status_code, (await answer.aread()).decode())
    return answer


@asynccontextmanager
async def transports(
    address: str, token: str, headers: dict[str, str] | None = None
) -> AsyncIterator[Transports]:
    """Connections as the holder of `token`, with more `headers` on every call."""
    more = headers or {}
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=f"http://{address}",
            headers={"Authorization": f"Bearer {token}", **more},
            timeout=30,
            limits=limits,
        ) as http,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Transports(http, channel, token, more)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in the details of a failed call."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            return _reason_in(value)
    return ""


def _reason_in(details: str | bytes) -> str:
    from google.rpc import error_details_pb2, status_pb2

    data = details if isinstance(details, bytes) else base64.b64decode(details + "==")
    for detail in status_pb2.Status.FromString(data).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


async def outcome(stream: Awaitable[Stream]) -> tuple[list[ChatEvent], str]:
    """The events of a turn, and why it was refused, whichever way the transport tells that."""
    reading: Stream | None = None
    try:
        reading = await stream
        events = await take(reading)
    except (Refused, PageFailure) as refused:
        return [], refused.reason
    except grpc.aio.AioRpcError as error:
        return [], reason_of(error)
    finally:
        if reading is not None:
            await reading.cut()
    if isinstance(reading, _Web) and _DETAILS in reading.answer.headers:
        return events, _reason_in(reading.answer.headers[_DETAILS])
    if events and events[-1].type == "error" and not events[-1].seq:
        return events[:-1], events[-1].reason
    return events, ""

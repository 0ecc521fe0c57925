"""Chat over WebSocket: a thin client of `Converse` for those who have nothing else.

The socket's first message brings the token. From then on each message of the client is one of `Converse`'s
requests and each response is a message; whatever ends one of the two ends the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

import grpc
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketDisconnected

from weft.connection import Outcome, being_cancelled
from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import ConverseRequest, ConverseResponse
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weftd.edge import chat_messages
from weftd.edge.origin import foreign_page
from weftd.edge.replies import plain_error, refused
from weftd.errors import (
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    WeftError,
    reason_name,
)
from weftd.rpc.drain import Drain
from weftd.rpc.status import code_of, from_rpc_error, unavailable
from weftd.rpc.wire import SOCKET_KEY

__all__ = ["ChatSockets"]

_START_LIMIT_S: Final = 10.0
_MOST_OPEN: Final = 10_000
_MOST_UNKNOWN: Final = 1_000
_LONGEST_TOKEN: Final = 8192
# Of the handshake; Envoy keeps what the client sent as X-Tenant-ID in the third.
_PASSED_ON: Final = ("x-request-id", "x-tenant-id", "x-weft-requested-tenant", "traceparent")

_DONE, _GOING_AWAY, _FAILED = 1000, 1001, 1011
# 4400 and 4403 mean what HTTP's 400 and 403 do; 1013 is "try again later".
_CLOSE_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 4400,
    grpc.StatusCode.UNAUTHENTICATED: 4401,
    grpc.StatusCode.PERMISSION_DENIED: 4403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 1013,
    grpc.StatusCode.UNAVAILABLE: 1013,
}


class ChatSockets:
    """All sockets of this process. `start_limit_s`: how long one may stay without a token."""

    def __init__(
        self,
        chat: ChatServiceStub,
        drain: Drain,
        allowed_origins: Collection[str] = (),
        start_limit_s: float = _START_LIMIT_S,
    ) -> None:
        self._chat = chat
        self._drain = drain
        self._allowed_origins = allowed_origins
        self._start_limit_s = start_limit_s
        self._places = asyncio.Semaphore(_MOST_OPEN)
        self._unknown = asyncio.Semaphore(_MOST_UNKNOWN)

    @property
    def open(self) -> int:
        """Sockets that are open now; for any thread."""
        return _MOST_OPEN - self._places._value

    async def serve(self, socket: WebSocket) -> None:
        """One socket, from its handshake to its end."""
        refusal = self._refusal(socket)
        if refusal is not None:
            await socket.send_denial_response(refusal)
            return
        self._drain.call_began()
        try:
            async with self._places:
                await socket.accept()
                await self._converse(socket)
        except (WebSocketDisconnect, WebSocketDisconnected):
            pass  # it has left; the second where that was noticed before by something else that was sent
        finally:
            self._drain.call_ended()

    def _refusal(self, socket: WebSocket) -> Response | None:
        why_not = foreign_page(socket.headers, self._allowed_origins)
        if why_not:
            return plain_error(403, 7, why_not)
        if socket.url.query:
            return refused(400, InvalidArgument({"query": "Nothing may stand here: send a start message."}))
        try:
            self._drain.refuse_new()
        except Unavailable as draining:
            return refused(503, draining)
        if self._places.locked() or self._unknown.locked():
            full = "Too many sockets are open here. Wait a moment, then try again."
            return refused(429, ResourceExhausted(error_reason_pb2.ERROR_REASON_OVERLOADED, full))
        return None

    async def _converse(self, socket: WebSocket) -> None:
        try:
            async with self._unknown:
                metadata = _metadata(socket.headers, await self._token(socket))
            session = _Session(socket, self._chat.Converse(metadata=metadata), self._drain)
            await session.run()
            code, reason = (_GOING_AWAY, "draining") if session.goes_away else (_DONE, "")
        except WeftError as error:
            await socket.send_text(chat_messages.error_text(error))
            code = _CLOSE_CODES.get(code_of(error), _FAILED)
            reason = reason_name(error.reason)
        await socket.close(code, reason)

    async def _token(self, socket: WebSocket) -> str:
        given = socket.headers.get("authorization")
        if given is not None:
            scheme, _, token = given.partition(" ")
            return _checked(token if scheme.lower() == "bearer" else "")
        try:
            async with asyncio.timeout(self._start_limit_s):
                fields = chat_messages.read(await _received(socket))
        except (TimeoutError, InvalidArgument):
            fields = {}
        match fields:
            case {"type": "start", "token": str(token), **more} if not more:
                return _checked(token)
        raise Unauthenticated('There is no token. The first message is {"type":"start","token":"…"}.')


class _Session:
    """A socket with a token, and its call."""

    def __init__(self, socket: WebSocket, call: Any, drain: Drain) -> None:
        self.goes_away = False
        self._socket = socket
        self._call: grpc.aio.StreamStreamCall[ConverseRequest, ConverseResponse] = call
        self._outcome = Outcome(call)
        self._drain = drain
        self._has_ended = False

    async def run(self) -> None:
        """Until the call has ended, which is a WeftError where it failed, or the client has left."""
        up, down = asyncio.create_task(self._up()), asyncio.create_task(self._down())
        tasks = (up, down, asyncio.create_task(self._leave()))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            await (down if down.done() else up)
        finally:
            self._call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _up(self) -> None:
        """Passes the client's messages on. WebSocketDisconnect once it has left."""
        while True:
            fields: dict[str, Any] = {}
            try:
                fields = chat_messages.read(await _received(self._socket))
                await self._take(fields)
            except WeftError as error:
                await self._socket.send_text(chat_messages.error_text(error, fields))

    async def _take(self, fields: dict[str, Any]) -> None:
        match fields:
            case {"type": "ping", **more} if not more:
                await self._socket.send_text(chat_messages.text({"type": "pong"}))
            case {"type": "end", **more} if not more:
                await self._end()
            case {"type": "start" | "ping" | "end" as kind}:
                raise InvalidArgument({kind: "Comes once, first." if kind == "start" else "Has no fields."})
            case _:
                request = chat_messages.as_request(fields)
                self._drain_refuses(request)
                if self._has_ended:
                    raise InvalidArgument({"type": "Nothing may follow an end. Open another socket."})
                await self._write(request)

    def _drain_refuses(self, request: ConverseRequest) -> None:
        if request.WhichOneof("kind") in ("turn", "resume"):
            self._drain.refuse_new()

    async def _down(self) -> None:
        try:
            while (response := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(response, ConverseResponse)
                if response.HasField("go_away"):
                    if self.goes_away:
                        continue
                    self.goes_away = True
                # Waits while the client does not read: then nothing is read from the call either.
                await self._socket.send_text(chat_messages.response_text(response))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(self._outcome.error(error), "chat") from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise unavailable("chat", "broke the call off") from None

    async def _leave(self) -> None:
        """This process drains: what runs is answered, and the client told to go elsewhere."""
        await self._drain.started.wait()
        if not self.goes_away:
            self.goes_away = True
            response = ConverseResponse()
            response.go_away.reason = "draining"
            response.go_away.grace_ms = round(self._drain.grace_s * 1000)
            await self._socket.send_text(chat_messages.response_text(response))
        await self._end()

    async def _write(self, request: ConverseRequest) -> None:
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call has ended: `_down` tells why
        except asyncio.CancelledError:
            if being_cancelled():
                raise

    async def _end(self) -> None:
        """No request will follow."""
        if self._has_ended:
            return
        self._has_ended = True
        try:
            await self._call.done_writing()
        except asyncio.CancelledError:
            if being_cancelled():
                raise


async def _received(socket: WebSocket) -> str:
    """The next message. WebSocketDisconnect where the client has left; InvalidArgument for a binary one."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1006))
    given = message.get("text")
    if given is None:
        raise InvalidArgument({"message": "Is binary. Send text."})
    return str(given)


def _checked(token: str) -> str:
    if not token or len(token) > _LONGEST_TOKEN or not _is_plain(token):
        raise Unauthenticated("The token is none. Get a new one, and send it as it is.")
    return token


def _metadata(headers: Headers, token: str) -> tuple[tuple[str, str], ...]:
    passed_on = [(name, value) for name in _PASSED_ON for value in headers.getlist(name) if value]
    for name, value in passed_on:
        if not _is_plain(value):
            raise InvalidArgument({name: "Use printable ASCII."})
    return (("authorization", f"Bearer {token}"), (SOCKET_KEY, "1"), *passed_on)


def _is_plain(value: str) -> bool:
    return value.isascii() and value.isprintable()

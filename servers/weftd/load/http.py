"""A caller over REST and one over gRPC-Web, on as much of HTTP/1.1 as Envoy's answers need (RFC 9112)."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2

from weft.errors import Unavailable, WeftError, from_event
from weft.v1.chat_pb2 import ChatEvent, StreamChatRequest
from weftd.load.target import Target, tls

__all__ = ["Http", "RestCaller", "WebCaller", "rest_error", "silent"]

_CONNECT_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by their names in lower case; `pieces` is the body as it comes."""

    status: int
    headers: dict[str, str]
    pieces: AsyncGenerator[bytes, None]

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces])


class Http:
    """One connection, made when it is needed and kept while the server keeps it."""

    def __init__(self, target: Target, token: str) -> None:
        self._target = target
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @asynccontextmanager
    async def post(self, path: str, content_type: str, body: bytes) -> AsyncIterator[Answer]:
        """Unavailable where the connection cannot be made, or is lost within the answer."""
        kept = False
        try:
            if self._streams is None:
                host, _, port = self._target.address.rpartition(":")
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    self._streams = await asyncio.open_connection(
                        host.strip("[]"), int(port), ssl=tls(self._target)
                    )
            reader, writer = self._streams
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {self._target.address}\r\n"
                f"Authorization: Bearer {self._token}\r\n"
                f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            status, headers = await _head(reader)
            pieces = _pieces(reader, headers)
            yield Answer(status, headers, pieces)
            # Whoever stopped reading early leaves bytes behind that are not the next answer.
            kept = headers.get("connection") != "close" and await anext(pieces, None) is None
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            raise silent(self._target.address, error) from None
        finally:
            if not kept:
                await self.close()

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def silent(address: str, error: Exception) -> Unavailable:
    """What a connection that cannot be made, or is lost, means to who runs this."""
    return Unavailable(
        f"Weft does not answer at {address} ({error}). Is it running, and is the address right?"
    )


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    if not first.startswith("HTTP/1.1 "):
        raise ConnectionError("it does not speak HTTP/1.1")
    fields = (line.partition(":") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value.strip() for name, _, value in fields}


async def _pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif size := int(headers.get("content-length", "0")):
        yield await reader.readexactly(size)


class RestCaller:
    """`POST /api/v1/chat/stream`, read as server-sent events."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        body = json.dumps(MessageToDict(request, preserving_proto_field_name=True)).encode()
        async with self._http.post("/api/v1/chat/stream", "application/json", body) as answer:
            if answer.status != 200:
                raise rest_error(answer.status, await answer.body())
            held = b""
            async for piece in answer.pieces:
                *events, held = (held + piece).split(b"\n\n")
                for event in events:
                    fields = json.loads(event.removeprefix(b"data: "))
                    yield ChatEvent(
                        **{name: fields[name] for name in ("type", "content", "reason") if name in fields}
                    )

    async def close(self) -> None:
        await self._http.close()


def rest_error(status: int, body: bytes) -> WeftError:
    """What a refusal over HTTP says."""
    try:
        error: dict[str, Any] = json.loads(body)
        reasons = [detail["reason"] for detail in error.get("details", ()) if "reason" in detail]
        return from_event(reasons[0] if reasons else f"HTTP {status}", error.get("message", ""))
    except (ValueError, AttributeError):
        return WeftError("The answer is no error of Weft's.", reason=f"HTTP {status}")


class WebCaller:
    """`ChatService.StreamChat` as a browser calls it, in binary frames."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        message = request.SerializeToString()
        path, kind = "/weft.v1.ChatService/StreamChat", "application/grpc-web+proto"
        async with self._http.post(path, kind, struct.pack(">BI", 0, len(message)) + message) as answer:
            _raise_for(answer.status, answer.headers)
            held = b""
            async for piece in answer.pieces:
                held += piece
                while len(held) >= 5 and len(held) >= 5 + (size := int.from_bytes(held[1:5], "big")):
                    flags, frame, held = held[0], held[5 : 5 + size], held[5 + size :]
                    if flags & 0x80:
                        lines = (line.partition(":") for line in frame.decode("latin-1").split("\r\n"))
                        _raise_for(200, {name.lower(): value.strip() for name, _, value in lines})
                    else:
                        yield ChatEvent.FromString(frame)

    async def close(self) -> None:
        await self._http.close()


def _raise_for(status: int, fields: dict[str, str]) -> None:
    """Raises what the HTTP status, or the status among headers or trailers, says."""
    code = fields.get("grpc-status", "0")
    if status == 200 and code == "0":
        return
    reason = f"gRPC status {code}" if code != "0" else f"HTTP {status}"
    packed = fields.get("grpc-status-details-bin", "")
    for detail in status_pb2.Status.FromString(base64.b64decode(packed + "=" * (-len(packed) % 4))).details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
    raise from_event(reason, unquote(fields.get("grpc-message", "")))

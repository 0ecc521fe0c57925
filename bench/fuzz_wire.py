"""Sends what `bench.fuzz_inputs` draws, and says what is wrong with the answer."""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from typing import Any

import grpc

from bench.fuzz_inputs import Frames, HttpRequest, RpcCall

__all__ = ["HANG_S", "Wire"]

HANG_S = 20.0
"""Nothing that a client sends keeps it waiting for longer."""

# A request that is not whole waits for its rest so long; then we close, and so does the mesh.
_QUIET_S = 0.3
_LARGEST_REFUSAL_BYTES = 4096
_NOT_CLOSED = 1006
_BAD_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
# gRPC itself answers INTERNAL for a message that says it is compressed where the headers do not, as its
# specification demands.
_BAD_GRPC_WEB = re.compile(rb"grpc-status: ?(2|13|14)\b(?!\r\ngrpc-message: ?Compression bit set)")
_INTERNAL = re.compile(rb'"reason": ?"INTERNAL"')


class Wire:
    """Connections to a mesh as the holder of a token."""

    def __init__(self, address: str, token: str) -> None:
        host, _, port = address.rpartition(":")
        self._at = (host, int(port))
        self._token = token.encode()
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_metadata_size", 1 << 17)])
        self.codes: dict[str, int] = {}

    def try_it(self, sent: Any) -> str:
        """Sends one input; what is wrong with the answer, empty: nothing."""
        began = time.monotonic()
        match sent:
            case HttpRequest():
                complaint = self._http(sent)
            case Frames():
                complaint = self._socket(sent)
            case RpcCall():
                complaint = self._rpc(sent)
            case _:
                raise TypeError(sent)
        took_s = time.monotonic() - began
        return complaint or (f"took {took_s:.0f} s" if took_s > HANG_S else "")

    def _count(self, outcome: object) -> None:
        self.codes[str(outcome)] = self.codes.get(str(outcome), 0) + 1

    def _http(self, request: HttpRequest) -> str:
        answer = self._exchanged(request.raw.replace(b"TOKEN", self._token), request.is_whole)
        status = int(answer[9:12]) if re.match(rb"HTTP/1\.[01] \d{3}", answer) else 0
        self._count(status or "closed")
        if not status:
            return "no answer" if request.is_whole else ""
        head, _, body = answer.partition(b"\r\n\r\n")
        if status >= 500 and status not in (501, 504):
            return f"HTTP {status}: {body[:300]!r}"
        if _INTERNAL.search(body) or _BAD_GRPC_WEB.search(answer):
            return f"a fault: {answer[-300:]!r}"
        is_rest = request.is_whole and not request.raw.startswith(b"HEAD") and b" /api/" in request.raw[:20]
        return _badly_refused(head, body) if is_rest and status >= 400 else ""

    def _exchanged(self, raw: bytes, is_whole: bool = True) -> bytes:
        """What came back until the other side closed, or until it was silent after we did."""
        with socket.create_connection(self._at, timeout=_QUIET_S) as connection:
            answer = b""
            open_for_writing = not is_whole
            deadline = time.monotonic() + HANG_S + 5
            try:
                connection.sendall(raw)
            except OSError:  # refused before all of it was read
                open_for_writing = False
            while time.monotonic() < deadline:
                try:
                    data = connection.recv(1 << 16)
                except TimeoutError:
                    if open_for_writing:  # it may wait for more, which will not come
                        open_for_writing = False
                        connection.shutdown(socket.SHUT_WR)
                    continue
                except OSError:
                    break
                if not data:
                    break
                answer += data
                if _is_whole(answer):
                    break
            return answer

    def _socket(self, sent: Frames) -> str:
        head = [
            b"GET /api/v1/chat/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket",
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            *([b"Authorization: Bearer " + self._token] if sent.header_token else []),
        ]
        raw = b"\r\n".join(head) + b"\r\n\r\n"
        raw += b"".join(_frame(first, data.replace(b"TOKEN", self._token)) for first, data in sent.frames)
        raw += _frame(0x81, b'{"type":"end"}') + _frame(0x88, b"\x03\xe8")
        answer = self._exchanged(raw)
        self._count("101" if b" 101 " in answer[:20] else answer[9:12].decode() or "closed")
        if b" 101 " not in answer[:20]:
            return f"no socket: {answer[:300]!r}"
        close = _closed_with(answer.partition(b"\r\n\r\n")[2])
        self._count(f"close {close}")
        if close == 1011 or _INTERNAL.search(answer):
            return f"a fault: closed with {close}, {answer[-300:]!r}"
        return ""

    def _rpc(self, call: RpcCall) -> str:
        metadata = (("authorization", f"Bearer {self._token.decode()}"), *call.metadata)
        try:
            method = self._channel.stream_stream(call.path)
            for _ in method(iter(call.messages), metadata=metadata, timeout=HANG_S):
                pass
        except grpc.RpcError as error:
            code = error.code()
            self._count(code.name)
            if code in _BAD_CODES or code is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{code.name}: {error.details()}"
        except ValueError:
            self._count("not sent")  # metadata that gRPC's own library refuses
        else:
            self._count("OK")
        return ""


def _is_whole(answer: bytes) -> bool:
    """Whether an answer is there to its end: Envoy closes up to a second after it."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 101 " in head[:20]:
        return _closed_with(body) != _NOT_CLOSED
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return len(body) >= int(length[1]) if length else body.endswith(b"\r\n0\r\n\r\n")


def _badly_refused(head: bytes, body: bytes) -> str:
    """A refusal is JSON with a code and a message, and not as long as what was sent."""
    if b"transfer-encoding: chunked" in head.lower():
        body = b"".join(re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body))
    if len(body) > _LARGEST_REFUSAL_BYTES:
        return f"a refusal of {len(body)} bytes: {body[:300]!r}"
    try:
        said = json.loads(body)
        return "" if said["message"] and "code" in said else f"no message: {body[:300]!r}"
    except (ValueError, KeyError, TypeError):
        return f"no JSON: {head[:100]!r} {body[:300]!r}"


def _frame(first: int, data: bytes) -> bytes:
    """As a client sends it, masked (with zeros, which leave the data as they are)."""
    if len(data) < 126:
        size = struct.pack(">B", 0x80 | len(data))
    elif len(data) < 1 << 16:
        size = struct.pack(">BH", 0x80 | 126, len(data))
    else:
        size = struct.pack(">BQ", 0x80 | 127, len(data))
    return bytes([first]) + size + bytes(4) + data


def _closed_with(frames: bytes) -> int:
    """The code of the server's close frame; 1006 where there is none, 1005 where it has no code."""
    at = 0
    while at + 2 <= len(frames):
        kind, size = frames[at] & 0x0F, frames[at + 1] & 0x7F
        at += 2
        if size == 126:
            size, at = int.from_bytes(frames[at : at + 2], "big"), at + 2
        elif size == 127:
            size, at = int.from_bytes(frames[at : at + 8], "big"), at + 8
        if kind == 8:
            return int.from_bytes(frames[at : at + 2], "big") if size >= 2 else 1005
        at += size
    return _NOT_CLOSED

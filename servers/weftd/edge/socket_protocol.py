"""uvicorn's WebSocket protocol, made safe against clients that send without reading."""

from __future__ import annotations

from typing import Final

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import State

from weft.v1 import error_reason_pb2
from weftd.edge.chat_messages import error_text
from weftd.errors import ResourceExhausted, reason_name

__all__ = ["SocketProtocol"]

_MOST_FRAGMENTS: Final = 1024
# What waits for a client is kept so long after its socket was given up.
_TOLD_WITHIN_S: Final = 60.0
_STALLED: Final = ResourceExhausted(
    error_reason_pb2.ERROR_REASON_OVERLOADED,
    "Nobody read this socket. Open another, and resume after the last event you have.",
)


class SocketProtocol(WebSocketsSansIOProtocol):
    """Bounds what uvicorn does not: pongs that nobody reads, fragments without end, a close that waits;
    and logs no fault where a text is no UTF-8."""

    async def send(self, message: ASGISendEvent) -> None:
        """ClientDisconnected also where we closed it ourselves, for a missed ping or too long a message."""
        await self.writable.wait()
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True  # a refused one too, or each is logged as a fault of ours

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # the pong, which would wait in memory

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < _MOST_FRAGMENTS:
            super().handle_cont(event)
        elif not self.close_sent:
            self.frames = []
            self.conn.fail(1009, "too many fragments")
            self.handle_parser_exception()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            self.frames = [b"".join(self.frames)]
            if not _is_utf8(self.frames[0]):
                self.frames = []
                self.conn.fail(1007, "not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def keepalive_timeout(self) -> None:
        """A client that reads is gone. One that does not is told, should it read again soon."""
        if self.writable.is_set() or self.conn.state is not State.OPEN:
            super().keepalive_timeout()
            if not self.writable.is_set():
                self.transport.abort()  # or the connection waits for a client that does not read
            return
        self.pong_timer = None
        self.conn.send_text(error_text(_STALLED).encode())
        self.conn.send_close(1013, reason_name(_STALLED.reason))
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1013, "reason": ""})
        self.transport.close()
        self.loop.call_later(_TOLD_WITHIN_S, self.transport.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

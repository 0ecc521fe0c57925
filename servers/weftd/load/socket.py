"""A caller over WebSocket: `/api/v1/chat/ws`, a turn at a time."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from weft.errors import from_event
from weft.v1.chat_pb2 import ChatEvent, StreamChatRequest
from weftd.load.http import rest_error, silent
from weftd.load.target import Target, tls

__all__ = ["SocketCaller"]

_CONNECT_TIMEOUT_S: Final = 10.0


class SocketCaller:
    """One socket, made when it is needed and kept while it is good."""

    def __init__(self, target: Target, token: str) -> None:
        self._target = target
        self._token = token
        self._socket: ClientConnection | None = None

    async def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        kept = going = False
        try:
            socket = self._socket = self._socket or await self._connected()
            turn = MessageToDict(request, preserving_proto_field_name=True)
            await socket.send(json.dumps({"type": "turn", **turn}))
            while True:
                fields: dict[str, Any] = json.loads(await socket.recv())
                if fields["type"] == "error" and "request_id" not in fields:  # of the socket itself
                    raise from_event(fields["reason"], fields.get("message", ""))
                going = going or fields["type"] == "go_away"
                if fields.get("request_id") != request.request_id:
                    continue
                over = fields["type"] in ("done", "error")
                kept = over and not going
                yield ChatEvent(
                    **{name: fields[name] for name in ("type", "content", "reason") if name in fields}
                )
                if over:
                    return
        except InvalidStatus as refused:
            raise rest_error(refused.response.status_code, bytes(refused.response.body or b"")) from None
        except (OSError, EOFError, WebSocketException) as error:
            raise silent(self._target.address, error) from None
        finally:
            if not kept:
                await self.close()

    async def _connected(self) -> ClientConnection:
        scheme = "wss" if self._target.tls else "ws"
        socket = await connect(
            f"{scheme}://{self._target.address}/api/v1/chat/ws",
            ssl=tls(self._target),
            compression=None,
            proxy=None,
            open_timeout=_CONNECT_TIMEOUT_S,
        )
        await socket.send(json.dumps({"type": "start", "token": self._token}))
        return socket

    async def close(self) -> None:
        if self._socket is not None:
            socket, self._socket = self._socket, None
            socket.transport.abort()

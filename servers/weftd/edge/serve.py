"""Runs the app inside a program that has an event loop already."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from weftd.edge.socket_protocol import SocketProtocol

__all__ = ["serve"]

_STOP_LIMIT_S = 2
_LARGEST_MESSAGE_BYTES = 1 << 20
_PING_S = 20.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the whole program's to handle."""
        yield


async def serve(
    app: ASGIApp, host: str, port: int, *, on_ready: Callable[[int], None] = lambda port: None
) -> None:
    """Serves until it is cancelled; then open requests have 2 s to end.

    `on_ready` is called once with the real port (0 takes any free one). OSError EADDRINUSE where it is taken.
    """
    with _bound(host, port) as listening:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",  # below it, what sockets bring is logged: tokens, what users say
            access_log=False,
            lifespan="off",
            ws=SocketProtocol,
            ws_max_size=_LARGEST_MESSAGE_BYTES,
            ws_ping_interval=_PING_S,
            ws_ping_timeout=_PING_S,
            ws_per_message_deflate=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_LIMIT_S,
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]), name="edge-http")
        # Connections are queued from here on: `_bound` listens.
        on_ready(listening.getsockname()[1])
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            errno.EADDRINUSE,
            f"Port {port} on {host}, where the page is served, is taken by another program. "
            "Stop that one, or choose another port with WEFT_EDGE_ADDRESS.",
        ) from None

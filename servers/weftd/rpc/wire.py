"""Over which transport a call came to the edge: a word of a fixed set, whatever the client sends."""

from __future__ import annotations

from typing import Final

EDGE_KEY: Final = "x-weft-wire"
"""Set by Envoy for each call of a client: the content type as it came, which its filters rewrite, else the
HTTP method."""

SOCKET_KEY: Final = "x-weft-socket"
"""Set by the edge's WebSocket bridge. Envoy takes every `x-weft-` of a client away."""

MESH: Final = "mesh"
"""The transport of a call that came to the service straight: from another service, or round the edge."""


def transport_of(edge: str, socket: str) -> str:
    """`grpc`, `grpc-web`, `rest`, `websocket` or `mesh`, by the two keys' values; "" where one is not set."""
    if socket:
        return "websocket"
    if not edge:
        return MESH
    if edge.startswith("application/grpc"):
        return "grpc-web" if edge.startswith("application/grpc-web") else "grpc"
    return "rest"

"""The transport of a call is a word of a fixed set, whatever a client sends."""

from __future__ import annotations

import pytest

from weftd.rpc.wire import transport_of


@pytest.mark.parametrize(
    ("edge", "socket", "transport"),
    [
        ("application/grpc", "", "grpc"),
        ("application/grpc+proto", "", "grpc"),
        ("application/grpc-web+proto", "", "grpc-web"),
        ("application/grpc-web-text", "", "grpc-web"),
        ("application/json", "", "rest"),
        ("GET", "", "rest"),
        ("websocket", "", "rest"),
        ("x" * 60_000, "", "rest"),
        ("", "1", "websocket"),
        ("", "", "mesh"),
    ],
)
def test_the_transport_of_a_call(edge: str, socket: str, transport: str) -> None:
    assert transport_of(edge, socket) == transport

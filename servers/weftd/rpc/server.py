"""The gRPC server of a process: its options, its services, health and reflection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from weftd.rpc.channels import MAX_MESSAGE_BYTES
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor

_MAX_METADATA_BYTES: Final = 128 << 10
_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # Above what the edge lets through, 60 KiB, and what it adds. gRPC's own 8 KiB is less than a long token.
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA_BYTES),
    # The windows stay small: what a reader has not taken yet waits at the sender, not in our memory.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 18),
    # Two processes on one port would share its connections by chance: the second is refused instead.
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 20_000),
    # A crowd of clients that come back at once waits to be taken in: by default gRPC answers some of it with
    # CANCELLED and no reason, from 1,000 on.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 20_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer, the generated function that adds it, and its full name, "weft.v1.ChatService"."""

    name: str
    servicer: Any
    add: Callable[[Any, grpc.aio.Server], None]


# A header that is no UTF-8 is taken as bytes, and whoever sends one could fill the log.
logging.getLogger("grpc._cython.cygrpc").addFilter(
    lambda record: not str(record.msg).startswith("Invalid encoding on")
)


def build_server(
    services: Sequence[Service], interceptor: CallInterceptor, health: Health
) -> grpc.aio.Server:
    """A server with these services, health and reflection; the caller binds its port and starts it."""
    server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
    for service in services:
        service.add(service.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [service.name for service in services]
    names += [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    return server


def bind(server: grpc.aio.Server, address: str) -> int:
    """Binds "host:port"; returns the port, a free one for port 0. OSError where it is taken."""
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(
            f"{address} cannot be listened on: another program has that port, or the host is not ours."
        ) from error

"""Calls from one service to another: on the caller's behalf, and never longer than the caller waits.

    peers = Peers()                                             # one a process, in compose.py
    models = peers.stub(ModelServiceStub, "models", "127.0.0.1:7003")

    found = await peers.unary(retrieval.Search, request, timeout_s=5)
    async with aclosing(peers.stream(models.Generate, request)) as events:
        async for event in events:
            ...

A call carries its caller's token, request id and traceparent, and what is left of its deadline. It
ends when the caller leaves: when the task is cancelled, or the stream is closed. What goes wrong
comes as the domain error that the other service raised; one that does not answer is Unavailable
BACKEND_UNAVAILABLE. Outside of an RPC, as in a job, `caller.enter` comes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

import grpc

from weftd.errors import DeadlineExceeded
from weftd.rpc import caller, status

MAX_MESSAGE_BYTES: Final = 5 * 1024 * 1024
"""Largest message between services, and from clients: 4 MiB of content, and what goes around it."""

# The time an error takes back to the caller, so that it still hears of it: seconds and share.
_MARGIN_S: Final = 0.02
_MARGIN_SHARE: Final = 0.1

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Proxies of the environment are for the internet, not for the mesh.
    ("grpc.enable_http_proxy", 0),
]

_IN_TURN: Final = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')

Stub = TypeVar("Stub")
Request = TypeVar("Request")
Response = TypeVar("Response")


class Peers:
    """The services behind this one: a channel per address, and how to call over it."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._names: dict[object, str] = {}

    def stub(self, kind: Callable[[grpc.aio.Channel], Stub], name: str, address: str) -> Stub:
        """A stub for the service at `address`; `name` is what errors call it.

        "host:port", or a target of gRPC with several: calls then go to each in turn.
        """
        channel = self._channels.get(address)
        if channel is None:
            # One server alone is connected to when it is called: after it was gone, a call waits for it.
            several = "," in address or address.startswith("dns:")
            options = [*_OPTIONS, _IN_TURN] if several else _OPTIONS
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=options)
        stub = kind(channel)
        for method in vars(stub).values():
            self._names[method] = name
        return stub

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
    ) -> Response:
        """Calls a unary method; `timeout_s` limits this call below the caller's own deadline."""
        current = caller.current()
        failed = _Failure(self._names.get(method, "a service"), current)
        try:
            return await method(request, metadata=_metadata(current), timeout=_budget(current, timeout_s))
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failed.raise_for(error)

    def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float | None = None,
    ) -> PeerStream[Response]:
        """Calls a server-streaming method; `timeout_s` limits the whole stream."""
        current = caller.current()
        call = method(request, metadata=_metadata(current), timeout=_budget(current, timeout_s))
        return PeerStream(call, _Failure(self._names.get(method, "a service"), current))

    async def close(self) -> None:
        """Closes every channel; calls that run are cancelled."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()


class PeerStream(AsyncIterator[Response], Generic[Response]):
    """The messages of one call. Closing it, or losing the last reference to it, cancels the call."""

    __slots__ = ("_call", "_failed")

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, Response], failed: _Failure) -> None:
        self._call = call
        self._failed = failed

    async def __anext__(self) -> Response:
        try:
            message = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            self._failed.raise_for(error)
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return cast(Response, message)

    async def aclose(self) -> None:
        """Cancels the call if it still runs."""
        self._call.cancel()

    def __del__(self) -> None:
        self._call.cancel()


class _Failure:
    """What the failure of one call means to its caller."""

    __slots__ = ("_current", "_name")

    def __init__(self, name: str, current: caller.Caller) -> None:
        self._name = name
        self._current = current

    def raise_for(self, error: grpc.aio.AioRpcError | asyncio.CancelledError) -> NoReturn:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise error
            # Not we: the other end cancelled, as a server does that is stopped at once.
            raise status.unavailable(self._name, "broke the call off") from None
        translated = status.from_rpc_error(error, self._name)
        if isinstance(translated, DeadlineExceeded):
            left_s = self._current.time_left_s()
            if left_s is None or left_s > 2 * _MARGIN_S:
                # Not the caller's time is up but the limit of this one call.
                raise status.unavailable(self._name, "did not answer in time") from None
        raise translated from None


def _metadata(current: caller.Caller) -> tuple[tuple[str, str], ...]:
    metadata = (("authorization", "Bearer " + current.token), ("x-request-id", current.request_id))
    return (*metadata, ("traceparent", current.traceparent)) if current.traceparent else metadata


def _budget(current: caller.Caller, timeout_s: float | None) -> float | None:
    left_s = current.time_left_s()
    if left_s is None:
        return timeout_s
    left_s -= min(_MARGIN_S, left_s * _MARGIN_SHARE)
    if left_s <= 0:
        raise DeadlineExceeded()
    return left_s if timeout_s is None else min(left_s, timeout_s)

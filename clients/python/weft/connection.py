"""One connection to Weft: its channel, its token, and calls that are tried again where that is safe."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import grpc

from weft.errors import NotFound, ResourceExhausted, Unauthenticated, Unavailable, WeftError, from_rpc
from weft.trace import traceparent

Token = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or a function (async or not) that returns one; it is called before every call."""

DEFAULT_ADDRESS: Final = "127.0.0.1:8080"

_ATTEMPTS: Final = 4
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0
_CLOSE_WITHIN_S: Final = 3.0

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # gRPC's own retries know nothing of which call may be repeated.
    ("grpc.enable_retries", 0),
]

Request = TypeVar("Request")
Response = TypeVar("Response")


class Connection:
    """Shared by everything that a `Weft` offers. Not for direct use."""

    def __init__(
        self, address: str | None, token: Token | None, *, tls: bool, root_certificates: bytes | None
    ) -> None:
        address = address or os.environ.get("WEFT_ADDRESS") or DEFAULT_ADDRESS
        scheme, separator, rest = address.partition("://")
        if separator and scheme in ("http", "https"):
            tls, address = tls or scheme == "https", rest.rstrip("/")
        self.address: Final = address
        self._token: Token = token or os.environ.get("WEFT_TOKEN") or ""
        self._tls = tls or root_certificates is not None
        self._root_certificates = root_certificates
        self._channel: grpc.aio.Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_close: set[Callable[[], object]] = set()

    @property
    def channel(self) -> grpc.aio.Channel:
        """Opened when it is first needed, on the loop that runs then."""
        if self._channel is None:
            if self._tls:
                credentials = grpc.ssl_channel_credentials(self._root_certificates)
                self._channel = grpc.aio.secure_channel(self.address, credentials, options=_OPTIONS)
            else:
                self._channel = grpc.aio.insecure_channel(self.address, options=_OPTIONS)
        return self._channel

    @property
    def is_connected(self) -> bool:
        """Whether the last attempt to connect went well, though that connection may be lost by now."""
        return self.channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    @property
    def can_renew_token(self) -> bool:
        return callable(self._token)

    async def metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """What goes with every call. Unauthenticated where there is no token."""
        token = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        if not token:
            raise Unauthenticated("There is no token: give Weft(token=…) one, or set WEFT_TOKEN.")
        return (
            ("authorization", f"Bearer {token}"),
            ("x-request-id", request_id),
            ("traceparent", traceparent(request_id)),
        )

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout_s: float,
        request_id: str | None = None,
        if_gone: Response | None = None,
    ) -> Response:
        """Calls a method that may be called twice; tries again, with pauses, while that can help.

        `if_gone` is the answer of a deletion whose first answer was lost: the second finds nothing.
        """
        request_id = request_id or new_id()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        attempt, renewed = 0, False
        while True:
            metadata = await self.metadata(request_id)
            try:
                return await method(request, metadata=metadata, timeout=max(0.0, end - loop.time()))
            except grpc.aio.AioRpcError as error:
                failure = from_rpc(error, self.address)
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                failure = Unavailable("The call was broken off.")
            if isinstance(failure, Unauthenticated) and self.can_renew_token and not renewed:
                renewed = True
                continue
            if isinstance(failure, NotFound) and attempt > 0 and if_gone is not None:
                return if_gone
            wait_s = pause_s(attempt, failure)
            attempt += 1
            if not _may_help(failure) or attempt == _ATTEMPTS or loop.time() + wait_s >= end:
                raise failure
            await asyncio.sleep(wait_s)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts work that must outlive whoever asked for it; `close` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends what runs, waits a moment for it, then closes the channel."""
        for end in tuple(self.on_close):
            end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_WITHIN_S)
        for task in self._tasks:
            task.cancel()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def new_id() -> str:
    return uuid.uuid4().hex


def being_cancelled() -> bool:
    """Whether a CancelledError is for this task, and not the other end's way to break a call off."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _may_help(failure: WeftError) -> bool:
    """Whether the same call may go well in a moment."""
    if isinstance(failure, Unavailable):
        return True
    return isinstance(failure, ResourceExhausted) and failure.retry_after_s is not None


def pause_s(attempt: int, failure: WeftError | None) -> float:
    """How long to wait before the next attempt: what the server asks for, else longer each time."""
    if failure is not None and failure.retry_after_s is not None:
        return failure.retry_after_s
    pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * float(2**attempt))
    return pause * random.uniform(0.5, 1.0)


class Outcome:
    """How a call that writes has ended, as the server said it.

    grpc.aio replaces the status of a call by one of its own ("Internal error from Core") where the
    server ends it while a write waits; this one keeps what the server said.
    """

    def __init__(self, call: Any) -> None:
        self._said: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep)

    def error(self, seen: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The server's error, or `seen` where there is none."""
        return self._said or seen

    def _keep(self, call: Any) -> None:
        code, details, trailing = (_now(part()) for part in (call.code, call.details, call.trailing_metadata))
        if trailing and code is not grpc.StatusCode.OK:
            self._said = grpc.aio.AioRpcError(code, trailing_metadata=trailing, details=details)


def _now(ready: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        ready.send(None)
    except StopIteration as done:
        return done.value
    finally:
        ready.close()
    return None


async def pages(
    fetch: Callable[[str], Awaitable[tuple[list[Response], str]]],
) -> AsyncIterator[Response]:
    """Every item of a list, page after page."""
    page_token = ""
    while True:
        items, page_token = await fetch(page_token)
        for item in items:
            yield item
        if not page_token:
            return

"""One caller over each transport.

Not the SDK's `Weft.chat`: it goes on over lost connections and refusals, and a measurement must see them.
So this file speaks gRPC itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import grpc

from weft.connection import Outcome, being_cancelled
from weft.errors import Unavailable, WeftError, from_rpc
from weft.v1.chat_pb2 import ChatEvent, ConverseRequest, ConverseResponse, StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weftd.load import Transport
from weftd.load.http import Http, RestCaller, WebCaller
from weftd.load.socket import SocketCaller
from weftd.load.target import Target

__all__ = ["Caller", "callers"]

# Envoy serves a connection on one of its threads: a load on one connection would measure that thread.
_CALLERS_OF_A_CHANNEL: Final = 32


class Caller(Protocol):
    """Asks one question at a time, on a connection or stream that it keeps."""

    def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """The events of the answer as they come, to the end of the stream. Raises `weft.errors.WeftError`.

        Closing the generator early breaks the call off.
        """
        ...

    async def close(self) -> None: ...


@asynccontextmanager
async def callers(transport: Transport, target: Target, token: str) -> AsyncIterator[Callable[[], Caller]]:
    """What makes callers of a transport; all that they opened together is closed at the end."""
    channels: list[grpc.aio.Channel] = []
    made: list[Caller] = []

    def channel() -> grpc.aio.Channel:
        if len(made) % _CALLERS_OF_A_CHANNEL == 0:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            channels.append(_channel(target, options))
        return channels[-1]

    def make() -> Caller:
        caller: Caller
        match transport:
            case "grpc":
                caller = _GrpcCaller(channel(), target.address, token)
            case "converse":
                caller = _ConverseCaller(channel(), target.address, token)
            case "rest":
                caller = RestCaller(Http(target, token))
            case "grpc-web":
                caller = WebCaller(Http(target, token))
            case "ws":
                caller = SocketCaller(target, token)
        made.append(caller)
        return caller

    try:
        yield make
    finally:
        await asyncio.gather(*(caller.close() for caller in made), return_exceptions=True)
        await asyncio.gather(*(each.close() for each in channels))


def _channel(target: Target, options: list[tuple[str, int]]) -> grpc.aio.Channel:
    if not target.tls:
        return grpc.aio.insecure_channel(target.address, options=options)
    credentials = grpc.ssl_channel_credentials(target.authorities)
    return grpc.aio.secure_channel(target.address, credentials, options=options)


class _GrpcCaller:
    def __init__(self, channel: grpc.aio.Channel, address: str, token: str) -> None:
        self._stub = ChatServiceStub(channel)
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        call: Any = self._stub.StreamChat(request, metadata=self._metadata)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise Unavailable("The call was broken off.") from None
        finally:
            call.cancel()

    async def close(self) -> None:
        return


class _ConverseCaller:
    """One stream, a turn at a time; a new stream after a failure or `go_away`."""

    def __init__(self, channel: grpc.aio.Channel, address: str, token: str) -> None:
        self._stub = ChatServiceStub(channel)
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._call: Any = None

    async def ask(self, request: StreamChatRequest) -> AsyncGenerator[ChatEvent, None]:
        call, self._call = self._call or self._stub.Converse(metadata=self._metadata), None
        outcome = Outcome(call)
        going, over = False, False
        try:
            await call.write(ConverseRequest(turn=request))
            while not over and (message := await call.read()) is not grpc.aio.EOF:
                assert isinstance(message, ConverseResponse)
                if message.WhichOneof("kind") == "go_away":
                    going = True
                elif message.request_id == request.request_id:
                    over = message.event.type in ("done", "error")
                    yield message.event
        except grpc.aio.AioRpcError as error:
            raise from_rpc(outcome.error(error), self._address) from None
        except asyncio.InvalidStateError:  # the stream had ended before this turn was written
            raise await _ended(call, self._address) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise Unavailable("The stream was broken off.") from None
        finally:
            if over and not going:
                self._call = call
            else:
                call.cancel()

    async def close(self) -> None:
        if self._call is not None:
            self._call.cancel()


async def _ended(call: Any, address: str) -> WeftError:
    error = grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
    return from_rpc(error, address)

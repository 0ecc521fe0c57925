"""What happens around every call: token, caller, errors, log line, metrics, span.

A handler raises domain errors and never sees a status code. A stream's handler is an async
generator; it is closed in the call's own task, at once, when the client leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from weftd.errors import InvalidArgument, Unauthenticated
from weftd.rpc import access
from weftd.rpc.auth import TokenVerifier
from weftd.rpc.call import Call, Context, Method, Surroundings
from weftd.rpc.drain import Drain
from weftd.rpc.metrics import MethodMetrics
from weftd.rpc.tracing import StartSpan

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The one interceptor of every server; `start_span` only where spans are exported."""

    def __init__(self, verifier: TokenVerifier, drain: Drain, start_span: StartSpan | None = None) -> None:
        self._around = Surroundings(verifier, drain, start_span)
        self._wrapped: dict[str, _Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(handler_call_details)
        if handler is None or access.is_open(method):
            return handler
        wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, name: str, handler: _Handler) -> _Handler:
        method = _Wrapped(self._around, name, handler)
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                make, behavior = grpc.stream_unary_rpc_method_handler, method.unary(handler.unary_unary)
            case True, False:
                make, behavior = grpc.stream_unary_rpc_method_handler, method.unary(handler.stream_unary)
            case False, True:
                make, behavior = grpc.stream_stream_rpc_method_handler, method.stream(handler.unary_stream)
            case _:
                make, behavior = grpc.stream_stream_rpc_method_handler, method.bidi(handler.stream_stream)
        # A single request is read and parsed inside the call, so that one that is broken or does not come is
        # answered like any other error: gRPC would leave its client without an answer.
        parse = method.parse if handler.request_streaming else None
        wrapped: _Handler = make(behavior, parse, handler.response_serializer)
        return wrapped


class _Wrapped:
    """One method of a servicer: makes what the server calls in its place."""

    def __init__(self, around: Surroundings, name: str, handler: _Handler) -> None:
        self._around = around
        metrics = MethodMetrics(name, streams=bool(handler.response_streaming))
        self._method = Method(name, access.role_needed(name), metrics)
        self._takes_stream = handler.request_streaming
        self._parse = handler.request_deserializer

    def parse(self, raw: bytes) -> Any:
        try:
            return raw if self._parse is None else self._parse(raw)
        except DecodeError:
            raise InvalidArgument({"": "The bytes are no message of this type."}) from None

    async def only_request(self, context: Context) -> Any:
        raw = await context.read()
        if raw is grpc.aio.EOF:
            # As gRPC's own refusals, without details.
            said = "This call takes one message and got none. Send one."
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, said)
        return self.parse(raw)

    def unary(self, behavior: Any) -> Any:
        async def handle(requests: Any, context: Context) -> Any:
            call = Call(self._around, self._method, context)
            try:
                call.begin()
                request = requests if self._takes_stream else await self.only_request(context)
                response = await behavior(request, context)
                await call.greet()
                return response
            except BaseException as error:
                await call.fail(error)
            finally:
                call.end()

        return handle

    def stream(self, behavior: Any) -> Any:
        async def handle(_requests: Any, context: Context) -> None:
            call = Call(self._around, self._method, context)
            try:
                call.begin()
                await call.send_all(behavior(await self.only_request(context), context))
            except BaseException as error:
                await call.fail(error)
            finally:
                call.end()

        return handle

    def bidi(self, behavior: Any) -> Any:
        async def handle(requests: Any, context: Context) -> None:
            call = Call(self._around, self._method, context)
            try:
                call.begin()
                loop = asyncio.get_running_loop()
                expires_at = loop.time() + call.caller.token_expires_at - time.time()
                try:
                    async with asyncio.timeout_at(expires_at) as token_life:
                        await call.send_all(behavior(requests, context))
                except TimeoutError:
                    if token_life.expired():
                        raise Unauthenticated(
                            "The token ran out. Get a new one and open the stream again."
                        ) from None
                    raise
            except BaseException as error:
                await call.fail(error)
            finally:
                call.end()

        return handle

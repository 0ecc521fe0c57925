"""The official suite's service: answers with what each request asks for, and with what it saw of the request.

Its stubs are made by the test from the suite's own contract and lie on the path of this program alone.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc
from connectrpc.conformance.v1 import service_pb2, service_pb2_grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.status_pb2 import Status

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Metadata = tuple[tuple[str, str | bytes], ...]


class Conformance(service_pb2_grpc.ConformanceServiceServicer):
    """`Unimplemented` is left out on purpose: that it is refused is one of the cases."""

    async def Unary(self, request: Any, context: Any) -> Any:
        payload = await _single(request.response_definition, [request], context)
        return service_pb2.UnaryResponse(payload=payload)

    async def IdempotentUnary(self, request: Any, context: Any) -> Any:
        payload = await _single(request.response_definition, [request], context)
        return service_pb2.IdempotentUnaryResponse(payload=payload)

    async def ClientStream(self, requests: AsyncIterator[Any], context: Any) -> Any:
        received = [request async for request in requests]
        first = received[0] if received else service_pb2.ClientStreamRequest()
        payload = await _single(first.response_definition, received, context)
        return service_pb2.ClientStreamResponse(payload=payload)

    async def ServerStream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        asked = request.response_definition
        await _send_headers(asked, context)
        for i, data in enumerate(asked.response_data):
            await asyncio.sleep(asked.response_delay_ms / 1000)
            yield service_pb2.ServerStreamResponse(payload=_payload(data, context, [] if i else [request]))
        await _end(asked, context, [] if asked.response_data else [request])

    async def BidiStream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        asked = service_pb2.StreamResponseDefinition()
        waiting: list[Any] = []
        sent = received = 0
        at_once = False
        async for request in requests:
            received += 1
            waiting.append(request)
            if received == 1:
                asked, at_once = request.response_definition, request.full_duplex
                await _send_headers(asked, context)
            if at_once:
                if sent == len(asked.response_data):
                    break
                await asyncio.sleep(asked.response_delay_ms / 1000)
                yield _bidi(asked.response_data[sent], context, waiting)
                sent, waiting = sent + 1, []
        for data in asked.response_data[sent:]:
            await asyncio.sleep(asked.response_delay_ms / 1000)
            yield _bidi(data, context, waiting)
            sent, waiting = sent + 1, []
        await _end(asked, context, [] if sent else waiting)


async def _single(asked: Any, received: Sequence[Any], context: Any) -> Any:
    if asked.response_headers:
        await context.send_initial_metadata(_metadata(asked.response_headers))
    await asyncio.sleep(asked.response_delay_ms / 1000)
    await _end(asked, context, received)
    return _payload(asked.response_data, context, received)


async def _send_headers(asked: Any, context: Any) -> None:
    # An error alone is sent as one block, so there the headers come with it.
    if asked.response_headers or asked.response_data:
        await context.send_initial_metadata(_metadata(asked.response_headers))


async def _end(asked: Any, context: Any, received: Sequence[Any]) -> None:
    """Sets the trailers; ends the call here where an error is asked for. `received`: to be told in it."""
    trailers = _metadata(asked.response_trailers)
    if not asked.HasField("error"):
        context.set_trailing_metadata(trailers)
        return
    status = Status(code=asked.error.code, message=asked.error.message, details=asked.error.details)
    if received:
        status.details.append(_packed(_request_info(context, received)))
    details = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(_CODES[asked.error.code], asked.error.message, (*trailers, details))


def _bidi(data: bytes, context: Any, received: Sequence[Any]) -> Any:
    return service_pb2.BidiStreamResponse(payload=_payload(data, context, received))


def _payload(data: bytes, context: Any, received: Sequence[Any]) -> Any:
    info = _request_info(context, received) if received else None
    return service_pb2.ConformancePayload(data=data, request_info=info)


def _request_info(context: Any, received: Iterable[Any]) -> Any:
    headers: dict[str, list[str]] = {}
    for key, value in context.invocation_metadata():
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        headers.setdefault(key, []).append(text)
    left_s = context.time_remaining()
    return service_pb2.ConformancePayload.RequestInfo(
        request_headers=[service_pb2.Header(name=name, value=values) for name, values in headers.items()],
        timeout_ms=None if left_s is None else int(left_s * 1000),
        requests=[_packed(request) for request in received],
    )


def _metadata(headers: Iterable[Any]) -> _Metadata:
    return tuple(
        (name := header.name.lower(), base64.b64decode(value + "==") if name.endswith("-bin") else value)
        for header in headers
        for value in header.value
    )


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed

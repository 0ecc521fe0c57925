"""One call, from its metadata to its log line."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import structlog

from weft.v1 import error_reason_pb2
from weftd.errors import DeadlineExceeded, InvalidArgument, PermissionDenied, Unauthenticated
from weftd.rpc import access, caller, status, telemetry, wire
from weftd.rpc.auth import TokenVerifier
from weftd.rpc.drain import Drain
from weftd.rpc.metrics import MethodMetrics, TransportMetrics
from weftd.rpc.stall import StallGuard
from weftd.rpc.tenant_calls import TenantCalls
from weftd.rpc.tracing import CallSpan, StartSpan

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
# Envoy overwrites `x-tenant-id` with the token's and keeps what the client sent in the other.
_TENANT_KEYS: Final = ("x-tenant-id", "x-weft-requested-tenant")
# The client's clock of a deadline runs ahead of ours by the way of the request.
_DEADLINE_SLACK_S: Final = 0.05

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every call of a server needs; `start_span` only where spans are exported."""

    verifier: TokenVerifier
    drain: Drain
    start_span: StartSpan | None = None
    tenant_calls: TenantCalls = field(default_factory=TenantCalls)


@dataclass(frozen=True, slots=True)
class Method:
    """What is known of a method before any call: its full name, the role it needs, its metrics."""

    name: str
    role: str
    metrics: MethodMetrics


class Call:
    """Begin it, send what there is, end it; `fail` where anything is raised."""

    __slots__ = (
        "_around",
        "_code",
        "_context",
        "_made_id",
        "_messages",
        "_method",
        "_metrics",
        "_request_id",
        "_span",
        "_started",
        "_tenant",
        "caller",
    )

    def __init__(self, around: Surroundings, method: Method, context: Context) -> None:
        self._around = around
        self._method = method
        self._context = context
        self._started = method.metrics.began()
        self._metrics: TransportMetrics | None = None
        self._code = "OK"
        self._messages = 0
        self._request_id = ""
        self._made_id = False
        self._tenant = ""
        self._span: CallSpan | None = None
        self.caller: caller.Caller
        around.drain.call_began()

    def begin(self) -> None:
        """Finds out who calls and whether they may."""
        context, around = self._context, self._around
        given_id = traceparent = edge = socket = ""
        authorizations: list[str] = []
        tenants: list[str] = []
        for key, value in context.invocation_metadata() or ():
            if not isinstance(value, str):
                continue
            if key == "authorization":
                authorizations.append(value)
            elif key == "x-request-id":
                given_id = value
            elif key == "traceparent":
                traceparent = value if caller.TRACEPARENT.fullmatch(value) else ""
            elif key in _TENANT_KEYS and value:
                tenants.append(value)
            elif key == wire.EDGE_KEY:
                edge = value
            elif key == wire.SOCKET_KEY:
                socket = value
        self._metrics = self._method.metrics.over(wire.transport_of(edge, socket))
        id_is_good = _REQUEST_ID.fullmatch(given_id) is not None
        self._made_id = not id_is_good
        self._request_id = given_id if id_is_good else uuid.uuid4().hex
        if len(authorizations) > 1:
            raise Unauthenticated("There are two authorization headers. Send one.")
        scheme, _, token = "".join(authorizations).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("There is no token. Send it as 'authorization: Bearer …'.")
        claims = around.verifier.verify(token)
        around.tenant_calls.began(claims.tenant)
        self._tenant = claims.tenant
        if around.start_span is not None:
            self._span = around.start_span(self._method.name, traceparent, self._request_id)
            traceparent = self._span.traceparent
        left_s = context.time_remaining()
        self.caller = caller.Caller(
            tenant=claims.tenant,
            subject=claims.subject,
            roles=claims.roles,
            request_id=self._request_id,
            token=token,
            token_expires_at=claims.expires_at,
            deadline=None if left_s is None else time.monotonic() + left_s,
            traceparent=traceparent,
            start_span=around.start_span,
        )
        caller.enter(self.caller)
        if any(tenant != claims.tenant for tenant in tenants):
            raise PermissionDenied(
                error_reason_pb2.ERROR_REASON_TENANT_MISMATCH,
                "X-Tenant-ID names another tenant than the token. Leave it out, or use that tenant's token.",
            )
        access.check_role(self._method.role, claims.roles)
        if given_id and not id_is_good:
            raise InvalidArgument({"x-request-id": "Use 1 to 128 of letters, digits and _ - . : @."})

    async def greet(self) -> None:
        """Tells a request id that was made here, in `x-request-id`.

        One that came with the call its caller knows, and Envoy answers with it: headers sent apart from the
        first message cost a call a tenth of its time. Not before there is an answer: an error alone must be
        the first thing that is sent, or over REST it comes after a 200. A servicer that sent headers of its
        own has answered already.
        """
        if not self._made_id:
            return
        with contextlib.suppress(grpc.aio.UsageError):
            await self._context.send_initial_metadata((("x-request-id", self._request_id),))

    async def send_all(self, responses: AsyncGenerator[Any, None]) -> None:
        assert self._metrics is not None  # the call has begun
        write, wrote, last = self._context.write, self._metrics.wrote, self._started
        with StallGuard() as guard:
            async with contextlib.aclosing(responses):
                async for response in responses:
                    if not self._messages:
                        await self.greet()
                    guard.writing = self._messages + 1
                    await write(response)
                    guard.writing = 0
                    last = wrote(last, first=self._messages == 0)
                    self._messages += 1

    async def fail(self, error: BaseException) -> NoReturn:
        """Ends the call with the status that `error` means; re-raises where the client is gone."""
        if isinstance(error, grpc.aio.InternalError):
            # The connection broke beneath a read or write; there is no one left to answer.
            self._code = "CANCELLED"
            raise asyncio.CancelledError from error
        if isinstance(error, grpc.aio.AbortError):  # the handler's own
            self._code = self._context.code().name
            raise error
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                self._code = "DEADLINE_EXCEEDED" if self._out_of_time() else "CANCELLED"
                raise error
            # Nobody cancelled this call: a task that it awaited died. Unanswered, the client would wait.
        elif not isinstance(error, Exception | BaseExceptionGroup):
            raise error
        if isinstance(error, NotImplementedError) and self._context.code() is grpc.StatusCode.UNIMPLEMENTED:
            # The generated servicer's: the contract has the call, this server does not yet.
            self._code = "UNIMPLEMENTED"
            await self._context.abort(grpc.StatusCode.UNIMPLEMENTED, "This server does not have this call.")
        known = status.find_weft_error(error)
        if known is None and isinstance(error, grpc.aio.AioRpcError):
            known = status.from_rpc_error(error, "a service behind this one")
        if known is None and isinstance(error, TimeoutError) and self._out_of_time():
            known = DeadlineExceeded()
        if known is None:
            log.error(
                "call failed", rpc=self._method.name, request_id=self._request_id, **telemetry.describe(error)
            )
            known = status.internal(self._request_id)
        rich = status.to_status(known)
        code = status.code_of(known)
        self._code = code.name
        trailers: list[tuple[str, str | bytes]] = [(status.DETAILS_KEY, rich.SerializeToString())]
        if not self._messages:
            trailers.append(("x-request-id", self._request_id))
        await self._context.abort(code, rich.message, tuple(trailers))

    def _out_of_time(self) -> bool:
        left_s = self._context.time_remaining()
        return left_s is not None and left_s < _DEADLINE_SLACK_S

    def end(self) -> None:
        method = self._method
        metrics = self._metrics or method.metrics.over(wire.MESH)
        took_s = metrics.ended(self._started, self._code)
        self._around.drain.call_ended()
        if self._tenant:
            self._around.tenant_calls.ended(self._tenant)
        if self._span is not None:
            self._span.end(self._code)
        log.info(
            "rpc",
            rpc=method.name,
            transport=metrics.transport,
            code=self._code,
            ms=round(took_s * 1000, 2),
            messages=self._messages,
            request_id=self._request_id,
        )

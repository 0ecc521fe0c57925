"""What can go wrong, as exceptions.

    WeftError            reason, message, retry_after_s, metadata
    ├── InvalidArgument      a field is wrong; `fields` names each
    ├── Unauthenticated      no valid token
    ├── PermissionDenied     the token does not allow it
    ├── NotFound             there is no such thing
    ├── AlreadyExists
    ├── FailedPrecondition   mend something first, then call again
    ├── Unimplemented        not built yet
    ├── ResourceExhausted    too much at once; try again after `retry_after_s`
    ├── Unavailable          Weft, or something behind it, does not answer; try again
    ├── DeadlineExceeded     `timeout_s` has passed
    └── TurnEnded            the answer was stopped, or its server died: TURN_CANCELLED, INTERRUPTED

Anything else that the server says is a plain `WeftError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2


class WeftError(Exception):
    """Base of all: `reason` is for programs (a name of the contract's `ErrorReason`), `message` for people.

    `retry_after_s` is how long to wait where trying again helps, else None. `reason` is empty where
    the failure is the connection's and not Weft's.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}" if reason else message)
        self.message = message
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidArgument(WeftError):
    """`fields` maps the path of each bad field to what is wrong with it."""

    fields: Mapping[str, str] = {}


class Unauthenticated(WeftError): ...


class PermissionDenied(WeftError): ...


class NotFound(WeftError): ...


class AlreadyExists(WeftError): ...


class FailedPrecondition(WeftError): ...


class Unimplemented(WeftError): ...


class ResourceExhausted(WeftError): ...


class Unavailable(WeftError): ...


class DeadlineExceeded(WeftError): ...


class TurnEnded(WeftError): ...


_BY_CODE: Final[dict[grpc.StatusCode, type[WeftError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}

# An `error` event has a reason and no code.
_BY_REASON: Final[dict[str, type[WeftError]]] = {
    "INVALID_FIELD": InvalidArgument,
    "REQUEST_ID_REUSED": InvalidArgument,
    "TOKEN_INVALID": Unauthenticated,
    "TENANT_MISMATCH": PermissionDenied,
    "ROLE_MISSING": PermissionDenied,
    "CONVERSATION_NOT_FOUND": NotFound,
    "TURN_NOT_FOUND": NotFound,
    "DATASET_NOT_FOUND": NotFound,
    "DOCUMENT_NOT_FOUND": NotFound,
    "MODEL_NOT_FOUND": NotFound,
    "TURN_RUNNING": FailedPrecondition,
    "REPLAY_EXPIRED": FailedPrecondition,
    "EMBEDDER_CHANGED": FailedPrecondition,
    "MODEL_AUTH": FailedPrecondition,
    "MODEL_REFUSED": FailedPrecondition,
    "MODEL_CANNOT_CONTINUE": FailedPrecondition,
    "MODEL_RATE_LIMITED": ResourceExhausted,
    "OVERLOADED": ResourceExhausted,
    "MODEL_UNAVAILABLE": Unavailable,
    "MODEL_BROKEN": Unavailable,
    "MODEL_TIMEOUT": Unavailable,
    "BACKEND_UNAVAILABLE": Unavailable,
    "DRAINING": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "TURN_CANCELLED": TurnEnded,
    "INTERRUPTED": TurnEnded,
}


def from_event(reason: str, message: str, retry_after_ms: int = 0) -> WeftError:
    """The exception for an `error` event of a stream."""
    retry_after_s = retry_after_ms / 1000 if retry_after_ms else None
    return _BY_REASON.get(reason, WeftError)(message, reason=reason, retry_after_s=retry_after_s)


def from_rpc(error: grpc.aio.AioRpcError, address: str) -> WeftError:
    """The exception for a failed call."""
    code, message = error.code(), error.details() or ""
    info, bad_request, retry = _details(error)
    if info.domain != "weft":
        match code:
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return DeadlineExceeded("The time ran out. Give the call a longer timeout_s.")
            case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
                return Unavailable(
                    f"Weft does not answer at {address} ({message}). Is it running, and is the address right?"
                )
            case _:
                return _BY_CODE.get(code, WeftError)(message or code.name)
    failure = _BY_CODE.get(code, WeftError)(
        message,
        reason=info.reason,
        metadata=info.metadata,
        retry_after_s=retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
    )
    if isinstance(failure, InvalidArgument):
        failure.fields = {item.field: item.description for item in bad_request.field_violations}
    return failure


def _details(error: grpc.aio.AioRpcError) -> tuple[Any, Any, Any]:
    found = (error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo())
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                for kind in found:
                    detail.Unpack(kind)
    return found

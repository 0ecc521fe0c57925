"""Domain errors as gRPC statuses, and back: the one place that knows both.

On the wire an error is a `google.rpc.Status` with `ErrorInfo{reason, domain "weft", metadata}`,
`BadRequest` for the fields of an `InvalidArgument` and `RetryInfo` where a retry helps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from weft.v1 import error_reason_pb2
from weft.v1.error_reason_pb2 import ErrorReason
from weftd import errors

DOMAIN: Final = "weft"
DETAILS_KEY: Final = "grpc-status-details-bin"

# A status travels in HTTP/2 trailers, which are refused above 8 KiB: one Chinese character of the
# message takes up to 13 bytes there.
_LONGEST_MESSAGE: Final = 300
_MOST_FIELDS: Final = 10
_LONGEST_VALUE: Final = 128

_CODES: Final[dict[type[errors.WeftError], grpc.StatusCode]] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: errors.WeftError) -> grpc.StatusCode:
    """The status code of an error's class; INTERNAL for one that is outside the tree."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.INTERNAL


def to_status(error: errors.WeftError) -> status_pb2.Status:
    """The whole status, cut to what fits into trailers."""
    status = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message, _LONGEST_MESSAGE))
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(
            reason=errors.reason_name(error.reason),
            domain=DOMAIN,
            metadata={key: _cut(value, _LONGEST_VALUE) for key, value in error.metadata.items()},
        )
    )
    if isinstance(error, errors.InvalidArgument):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(name, _LONGEST_VALUE), description=_cut(what, _LONGEST_VALUE)
            )
            for name, what in list(error.fields.items())[:_MOST_FIELDS]
        ]
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def internal(request_id: str) -> errors.WeftError:
    """What a client sees of a fault in the server: where to look, and nothing of its text."""
    return errors.WeftError(
        error_reason_pb2.ERROR_REASON_INTERNAL,
        f"The server failed. Its log tells why under the request id {request_id}.",
        metadata={"request_id": request_id},
    )


def find_weft_error(error: BaseException) -> errors.WeftError | None:
    """The domain error that `error` is, or that a task group wrapped; None where there is none."""
    if isinstance(error, errors.WeftError):
        return error
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            found = find_weft_error(inner)
            if found is not None:
                return found
    return None


def from_rpc_error(error: grpc.aio.AioRpcError, backend: str) -> errors.WeftError:
    """The domain error that a service behind this one raised, or that calling it met.

    `backend` names the service, for people and for the metadata of BACKEND_UNAVAILABLE.
    """
    code, message = error.code(), error.details() or ""
    status = _details_of(error.trailing_metadata() or ())
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    if status is not None:
        for detail in status.details:
            for kind in (info, bad_request, retry):
                detail.Unpack(kind)
    if info.domain != DOMAIN:
        return _from_transport(code, backend)
    reason = _reason_of(info.reason)
    retry_after_s = retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None
    metadata = dict(info.metadata)
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT:
            fields = {violation.field: violation.description for violation in bad_request.field_violations}
            return errors.InvalidArgument(fields, reason=reason, message=message)
        case grpc.StatusCode.UNAUTHENTICATED:
            return errors.Unauthenticated(message)
        case grpc.StatusCode.PERMISSION_DENIED:
            return errors.PermissionDenied(reason, message, metadata=metadata)
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFound(reason, message, metadata=metadata)
        case grpc.StatusCode.ALREADY_EXISTS:
            return errors.AlreadyExists(reason, message, metadata=metadata)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.FailedPrecondition(reason, message, metadata=metadata, retry_after_s=retry_after_s)
        case grpc.StatusCode.UNIMPLEMENTED:
            return errors.Unimplemented(reason, message, metadata=metadata)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhausted(
                reason, message, metadata=metadata, retry_after_s=retry_after_s or 1.0
            )
        case grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable(reason, message, metadata=metadata, retry_after_s=retry_after_s or 1.0)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded(message)
        case _:
            return errors.WeftError(reason, message, metadata=metadata, retry_after_s=retry_after_s)


def unavailable(backend: str, what: str = "does not answer") -> errors.Unavailable:
    """BACKEND_UNAVAILABLE, naming the backend."""
    return errors.Unavailable(
        error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
        f"{backend} {what}. Try again in a moment.",
        metadata={"backend": backend},
    )


def _from_transport(code: grpc.StatusCode, backend: str) -> errors.WeftError:
    """For a status that no service of ours made: the connection, gRPC itself or a proxy did."""
    match code:
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded()
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"{backend} takes no more now. Try again in a moment.",
            )
        case grpc.StatusCode.UNAUTHENTICATED:
            return errors.Unauthenticated("The token was refused. Get a new one and call again.")
        case _:
            # UNAVAILABLE; and what a connection that broke in mid-stream looks like: INTERNAL,
            # UNKNOWN or CANCELLED, depending on how it broke.
            return unavailable(backend)


def _details_of(metadata: Iterable[tuple[str, str | bytes]]) -> status_pb2.Status | None:
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _reason_of(name: str) -> ErrorReason.ValueType:
    try:
        return ErrorReason.Value("ERROR_REASON_" + name)
    except ValueError:  # a reason that a newer server knows
        return error_reason_pb2.ERROR_REASON_INTERNAL


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"

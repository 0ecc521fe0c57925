"""The errors that domain code raises. One interceptor (`rpc/`) turns them into statuses.

    WeftError
    ├── InvalidArgument      a field is wrong; names each field
    ├── Unauthenticated      no valid token
    ├── PermissionDenied     the token does not allow it
    ├── NotFound             the tenant has no such thing
    ├── AlreadyExists
    ├── FailedPrecondition   mend something first, then call again
    ├── Unimplemented        not built, or not installed
    ├── ResourceExhausted    too much at once; carries when to retry
    ├── Unavailable          something behind does not answer; carries when to retry
    └── DeadlineExceeded     the caller's time is up

Every message tells the reader what to do next. Messages never quote another tenant's data.
"""

from __future__ import annotations

from collections.abc import Mapping

from weft.v1 import error_reason_pb2
from weft.v1.error_reason_pb2 import ErrorReason

__all__ = [
    "AlreadyExists",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InvalidArgument",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "WeftError",
    "reason_name",
]

_PREFIX = "ERROR_REASON_"


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The name that goes over the wire: `CONVERSATION_NOT_FOUND`."""
    return error_reason_pb2.ErrorReason.Name(reason).removeprefix(_PREFIX)


class WeftError(Exception):
    """Base of all. `reason` is for programs, `message` for people, `metadata` for `ErrorInfo`.

    `detail` is what a backend said: for the code that asked it, and never sent on, for it may quote anyone.
    """

    detail = ""

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s

    @property
    def retry_after_ms(self) -> int:
        """For an event; 0 where trying again does not help."""
        return round((self.retry_after_s or 0) * 1000)


class InvalidArgument(WeftError):
    """`fields` maps the path of each bad field to what is wrong with it."""

    def __init__(
        self,
        fields: Mapping[str, str],
        *,
        reason: ErrorReason.ValueType = error_reason_pb2.ERROR_REASON_INVALID_FIELD,
        message: str | None = None,
    ) -> None:
        super().__init__(reason, message or "; ".join(f"{name}: {what}" for name, what in fields.items()))
        self.fields = dict(fields)


class Unauthenticated(WeftError):
    def __init__(self, message: str) -> None:
        super().__init__(error_reason_pb2.ERROR_REASON_TOKEN_INVALID, message)


class PermissionDenied(WeftError): ...


class NotFound(WeftError): ...


class AlreadyExists(WeftError): ...


class FailedPrecondition(WeftError): ...


class Unimplemented(WeftError): ...


class ResourceExhausted(WeftError):
    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        retry_after_s: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after_s=retry_after_s)


class Unavailable(WeftError):
    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        retry_after_s: float = 1.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after_s=retry_after_s)


class DeadlineExceeded(WeftError):
    def __init__(self, message: str = "The deadline passed. Ask again with more time.") -> None:
        super().__init__(error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED, message)

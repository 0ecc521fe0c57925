"""Weft: ask your own documents. See `Weft`."""

from weft.client import Weft
from weft.converse import Converse
from weft.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TurnEnded,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    WeftError,
)
from weft.events import ChatEvent, Delta, Done, References
from weft.knowledge import UploadProgress
from weft.turn import Turn
from weft.v1.common_pb2 import Message, Reference, Usage

__all__ = [
    "AlreadyExists",
    "ChatEvent",
    "Converse",
    "DeadlineExceeded",
    "Delta",
    "Done",
    "FailedPrecondition",
    "InvalidArgument",
    "Message",
    "NotFound",
    "PermissionDenied",
    "Reference",
    "References",
    "ResourceExhausted",
    "Turn",
    "TurnEnded",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UploadProgress",
    "Usage",
    "Weft",
    "WeftError",
]

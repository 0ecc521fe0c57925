"""Why a version is not taken."""

from __future__ import annotations

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_VERSION_REFUSED
from weftd.errors import FailedPrecondition

__all__ = ["VersionRefused", "refused"]


class VersionRefused(ValueError):
    """What is wrong with a version, as the middle of a sentence: "its archive is …"."""


def refused(model: str, why: str) -> FailedPrecondition:
    """MODEL_VERSION_REFUSED."""
    return FailedPrecondition(
        ERROR_REASON_MODEL_VERSION_REFUSED,
        f"This version of {model} was refused, and nothing has changed: {why.rstrip('.')}.",
        metadata={"model": model},
    )

"""Failures of an OpenAI-compatible endpoint, told apart.

What the endpoint said is never handed on: it may quote the key or the conversation.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping

import openai
import structlog

from weft.v1.error_reason_pb2 import (
    ERROR_REASON_MODEL_AUTH,
    ERROR_REASON_MODEL_BROKEN,
    ERROR_REASON_MODEL_RATE_LIMITED,
    ERROR_REASON_MODEL_REFUSED,
    ERROR_REASON_MODEL_TIMEOUT,
    ERROR_REASON_MODEL_UNAVAILABLE,
)
from weftd.errors import FailedPrecondition, ResourceExhausted, Unavailable, WeftError

_log = structlog.get_logger()
_MAX_RETRY_AFTER_S = 3600.0
_BUSY_CODES = (
    "overloaded",
    "server_error",
    "internal_error",
    "service_unavailable",
    "503",
    "529",
    "500",
    "502",
)


def timed_out(model_id: str, waited_s: float) -> WeftError:
    return Unavailable(
        ERROR_REASON_MODEL_TIMEOUT,
        f"The language model was silent for over {waited_s:g} seconds. Try again, or choose another model.",
        retry_after_s=1.0,
        metadata={"model_id": model_id},
    )


def broken(model_id: str) -> WeftError:
    return Unavailable(
        ERROR_REASON_MODEL_BROKEN,
        "The language model's answer broke off or could not be read. Try again.",
        metadata={"model_id": model_id},
    )


def refused(model_id: str, why: str) -> WeftError:
    return FailedPrecondition(ERROR_REASON_MODEL_REFUSED, why, metadata={"model_id": model_id})


def translated(error: Exception, model_id: str, *, begun: bool, connect_timeout_s: float) -> WeftError:
    """The domain error for what `openai` raised; `begun`: the endpoint had already accepted the request."""
    status = error.status_code if isinstance(error, openai.APIStatusError) else None
    code = str(error.code or error.type or "") if isinstance(error, openai.APIError) else ""
    known_code = code if code.replace("_", "").isalnum() and len(code) <= 60 else ""
    _log.warning(
        "model_failed", model_id=model_id, error=type(error).__name__, http_status=status, code=known_code
    )
    metadata = {"model_id": model_id}
    if isinstance(error, openai.APITimeoutError) and not begun:
        return timed_out(model_id, connect_timeout_s)
    if isinstance(error, openai.APIConnectionError) and not begun:
        return Unavailable(
            ERROR_REASON_MODEL_UNAVAILABLE,
            "The language model's endpoint cannot be reached. Try again; if it stays so, check its base_url.",
            metadata=metadata,
        )
    if status in (401, 403) or code == "invalid_api_key":
        return FailedPrecondition(
            ERROR_REASON_MODEL_AUTH,
            "The language model's endpoint did not accept our key. An operator must set a valid api_key.",
            metadata=metadata,
        )
    if status == 429 or code in ("rate_limit_exceeded", "insufficient_quota", "429"):
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        return ResourceExhausted(
            ERROR_REASON_MODEL_RATE_LIMITED,
            "The language model's endpoint limits our rate. Try again later, or choose another model.",
            retry_after_s=retry_after_s(headers),
            metadata=metadata,
        )
    if code in ("context_length_exceeded", "string_above_max_length") or status == 413:
        return refused(
            model_id, "The conversation and passages are too long for this model. Send fewer of them."
        )
    if code in ("content_filter", "content_policy_violation"):
        return refused(
            model_id, "The language model's endpoint refused this content. Put the question another way."
        )
    if status == 404:
        return refused(
            model_id, "The endpoint does not know this model. An operator must check its base_url and model."
        )
    if status in (408, 409) or (status or 0) >= 500 or any(busy in code for busy in _BUSY_CODES):
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        return Unavailable(
            ERROR_REASON_MODEL_UNAVAILABLE,
            "The language model's endpoint failed or is overloaded. Try again in a moment.",
            retry_after_s=retry_after_s(headers),
            metadata=metadata,
        )
    if status is not None and 400 <= status < 500:
        return refused(
            model_id,
            "The endpoint refused the request: too long, or not allowed. Shorten it or choose another model.",
        )
    return broken(model_id)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After-Ms` or `Retry-After` (seconds or a date) ask for: 1 without, 3600 at most."""
    asked = headers.get("retry-after-ms")
    scale = 0.001
    if asked is None:
        asked, scale = headers.get("retry-after", ""), 1.0
    try:
        seconds = float(asked) * scale
    except ValueError:
        date = email.utils.parsedate_tz(asked)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 1.0
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else 1.0

"""What a request may hold. Each check raises InvalidArgument that names every bad field."""

from __future__ import annotations

import base64
import binascii
import math
import re

from weft.v1.chat_pb2 import RateAnswerRequest, StreamChatRequest
from weftd.errors import InvalidArgument

__all__ = [
    "check_ids",
    "check_rating",
    "check_turn",
    "latest_after",
    "latest_token",
    "page_size",
    "position_after",
]

_ID = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
# As long as "conv_" and a request id; "." and ".." would be taken out of a REST path on its way.
_CONVERSATION_ID = re.compile(r"[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]{0,132}")
_ID_RULE = "Use 1 to 128 of letters, digits and _ - . : @, a dot not first."
_ROLES = ("user", "assistant", "system")
_MOST_MESSAGES = 200
_LONGEST_MESSAGE = 32_000
_MOST_DATASETS = 100
_LONGEST_COMMENT = 4_000
_BAD_TOKEN = "This is none that a page of this list gave. Leave it empty for the first page."


def check_turn(request: StreamChatRequest) -> None:
    """A StreamChatRequest whose ids are filled in."""
    bad: dict[str, str] = {}
    if not _CONVERSATION_ID.fullmatch(request.conversation_id):
        bad["conversation_id"] = _ID_RULE
    if not _ID.fullmatch(request.request_id):
        bad["request_id"] = _ID_RULE
    _check_messages(request, bad)
    if request.HasField("temperature") and not 0 <= request.temperature <= 2:
        given = request.temperature
        bad["temperature"] = f"Is {given if math.isfinite(given) else 'no number'}; choose 0 to 2."
    if request.top_k > 50:
        bad["top_k"] = f"Is {request.top_k}; choose 1 to 50, or leave it out for 5."
    if len(request.dataset_ids) > _MOST_DATASETS:
        bad["dataset_ids"] = f"Names {len(request.dataset_ids)} datasets; name {_MOST_DATASETS} at most."
    elif not all(_ID.fullmatch(dataset_id) for dataset_id in request.dataset_ids):
        bad["dataset_ids"] = f"One is no id. {_ID_RULE}"
    if len(request.model_id) > 128:
        bad["model_id"] = "Is too long. ListModels has the ids."
    if bad:
        raise InvalidArgument(bad)


def _check_messages(request: StreamChatRequest, bad: dict[str, str]) -> None:
    messages = request.messages
    if not 1 <= len(messages) <= _MOST_MESSAGES:
        bad["messages"] = f"There are {len(messages)}; send 1 to {_MOST_MESSAGES}, the question last."
        return
    for at, message in enumerate(messages):
        name = f"messages[{at}]"
        if message.role not in _ROLES:
            bad[f"{name}.role"] = "Use user, assistant or system."
        if len(message.content) > _LONGEST_MESSAGE:
            bad[f"{name}.content"] = (
                f"Has {len(message.content)} characters; send {_LONGEST_MESSAGE} at most."
            )
        elif "\0" in message.content:
            bad[f"{name}.content"] = "Holds a NUL character. Send text."
    last = f"messages[{len(messages) - 1}]"
    if messages[-1].role != "user":
        bad[f"{last}.role"] = "The last message is the question: its role is user."
    if not messages[-1].content.strip():
        bad[f"{last}.content"] = "Is empty. Ask something."


def check_ids(conversation_id: str, request_id: str | None = None) -> None:
    """Ids of a conversation and, unless None, of a turn."""
    bad: dict[str, str] = {}
    if not _CONVERSATION_ID.fullmatch(conversation_id):
        bad["conversation_id"] = _ID_RULE
    if request_id is not None and not _ID.fullmatch(request_id):
        bad["request_id"] = _ID_RULE
    if bad:
        raise InvalidArgument(bad)


def check_rating(request: RateAnswerRequest) -> None:
    """The rating and its comment."""
    bad: dict[str, str] = {}
    if request.rating not in ("up", "down", ""):
        bad["rating"] = 'Use "up", "down", or nothing to take the rating back.'
    if len(request.comment) > _LONGEST_COMMENT or "\0" in request.comment:
        bad["comment"] = f"Use text of {_LONGEST_COMMENT} characters at most."
    if bad:
        raise InvalidArgument(bad)


def page_size(given: int, default: int, most: int) -> int:
    """How many to list: `default` for 0."""
    if given > most:
        raise InvalidArgument(
            {"page_size": f"Is {given}; choose 1 to {most}, or leave it out for {default}."}
        )
    return given or default


def latest_token(updated_at_ms: int, conversation_id: str) -> str:
    """The page token that comes after this conversation."""
    return base64.urlsafe_b64encode(f"{updated_at_ms} {conversation_id}".encode()).decode()


def latest_after(token: str) -> tuple[int, str] | None:
    """What `latest_token` was made from; None for the first page."""
    if not token:
        return None
    try:
        at, _, conversation_id = base64.b64decode(token, b"-_", validate=True).decode().partition(" ")
        if len(at) < 16 and _CONVERSATION_ID.fullmatch(conversation_id):
            return int(at), conversation_id
    except (ValueError, binascii.Error):
        pass
    raise InvalidArgument({"page_token": _BAD_TOKEN})


def position_after(token: str) -> int:
    """The message position that a page of messages begins after."""
    if not token:
        return -1
    if not re.fullmatch(r"[0-9]{1,9}", token):
        raise InvalidArgument({"page_token": _BAD_TOKEN})
    return int(token)

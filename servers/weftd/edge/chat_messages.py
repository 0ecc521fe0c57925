"""What goes over a chat socket: JSON objects with a `type`, as `Converse`'s messages and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from weft.v1.chat_pb2 import (
    Acknowledgement,
    CancelTurnRequest,
    ConverseRequest,
    ConverseResponse,
    ResumeChatRequest,
    StreamChatRequest,
)
from weftd.errors import InvalidArgument, WeftError, reason_name

__all__ = ["NAMES", "as_request", "error_text", "read", "response_text", "text"]

NAMES: Final = ("conversation_id", "request_id")
"""The fields that name a turn."""

_REQUESTS: Final[Mapping[str, type[Message]]] = {
    "turn": StreamChatRequest,
    "interrupt": CancelTurnRequest,
    "ack": Acknowledgement,
    "resume": ResumeChatRequest,
}
# More than any field may hold: turning a longer list into messages would hold up the event loop.
_MOST_ITEMS: Final = 1000
_LONGEST_COMPLAINT: Final = 300


def read(message: str) -> dict[str, Any]:
    """The JSON object of a message, its `type` a string. InvalidArgument where it is none."""
    try:
        fields = json.loads(message, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise InvalidArgument({"message": "Is no JSON. Send one JSON object a message."}) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise InvalidArgument({"type": "Send a JSON object with a type, such as turn."})
    return fields


def as_request(fields: Mapping[str, Any]) -> ConverseRequest:
    """What `read` gave, for `Converse`. InvalidArgument for an unknown type or field, or a wrong value."""
    kind = fields["type"]
    if kind not in _REQUESTS:
        raise InvalidArgument({"type": f"There is no {kind[:40]!r} here; send {', '.join(_REQUESTS)}."})
    rest = {name: value for name, value in fields.items() if name != "type"}
    for name, value in rest.items():
        if isinstance(value, list) and len(value) > _MOST_ITEMS:
            raise InvalidArgument({name[:40]: f"Has {len(value)} items; send fewer."})
    # protobuf's own parser answers half a character in a name with SystemError.
    try:
        return ConverseRequest(**{kind: ParseDict(rest, _REQUESTS[kind]())})  # type: ignore[arg-type] # by kind
    except (ParseError, ValueError, TypeError, RecursionError, OverflowError, SystemError) as error:
        complaint = " ".join(str(error).split())[:_LONGEST_COMPLAINT]
        raise InvalidArgument({kind: complaint}) from None


def response_text(response: ConverseResponse) -> str:
    """An event as REST prints it, then the turn that it is of; or `go_away`."""
    if response.HasField("go_away"):
        return text({"type": "go_away", **_printed(response.go_away)})
    names = {name: value for name in NAMES if (value := getattr(response, name))}
    return text({**_printed(response.event), **names})


def error_text(error: WeftError, about: Mapping[str, Any] | None = None) -> str:
    """An `error` that is no event of a turn; `about` is the message that is to blame, if any."""
    names = {
        name: value[:128]
        for name in NAMES
        if about is not None and isinstance(value := about.get(name), str) and value
    }
    retry = {"retry_after_ms": error.retry_after_ms} if error.retry_after_ms else {}
    fields = {
        "type": "error",
        "reason": reason_name(error.reason),
        "message": error.message,
        **retry,
        **names,
    }
    # JSON may hold halves of characters, which no message can.
    return text(fields).encode(errors="replace").decode()


def text(fields: Mapping[str, Any]) -> str:
    """The message with these fields."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _printed(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")

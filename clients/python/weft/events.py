"""The events of an answer, for `match`."""

from __future__ import annotations

from dataclasses import dataclass

from weft.errors import WeftError, from_event
from weft.v1.chat_pb2 import ChatEvent as _Message
from weft.v1.common_pb2 import Reference, Usage


@dataclass(frozen=True, slots=True)
class Delta:
    """Markdown to append to the answer."""

    text: str
    seq: int


@dataclass(frozen=True, slots=True)
class References:
    """The passages that the answer rests on; the text cites them by their `id`, as in "[1]".

    `degraded` names what was missing when they were looked for, as "dense" or "graph"; empty: nothing.
    """

    items: tuple[Reference, ...]
    degraded: tuple[str, ...]
    seq: int


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is whole; nothing follows. `degraded` as in `References`."""

    usage: Usage
    degraded: tuple[str, ...]
    seq: int


ChatEvent = Delta | References | Done


def read(message: _Message) -> ChatEvent | WeftError | None:
    """The event that a message is; the error that it tells of; None for a type of a newer server."""
    match message.type:
        case "delta":
            return Delta(message.content, message.seq)
        case "refs":
            return References(tuple(message.references), tuple(message.degraded), message.seq)
        case "done":
            return Done(message.usage, tuple(message.degraded), message.seq)
        case "error":
            return from_event(message.reason, message.message, message.retry_after_ms)
        case _:
            return None

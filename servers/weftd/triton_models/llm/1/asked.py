"""What is asked of a language model, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Asked", "Busy", "Counts", "Failed", "Piece", "Refused"]


class Refused(Exception):
    """The request cannot be taken, now or later; the message says why."""


class Busy(Exception):
    """As many texts as the model may have are open or wait."""


class Failed(Exception):
    """The model broke while it wrote."""


@dataclass(frozen=True)
class Asked:
    """What to write. Temperature 0 takes the likeliest token; None leaves a choice to the model's settings.

    The text goes on after `prefix`, and ends before any of `stop`, at the model's end token or after
    `max_tokens`.
    """

    messages: list[dict[str, str]]
    prefix: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text to append. `finish_reason` is empty but in the last one: "stop" or "length"."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Counts:
    """What the model did since it was loaded.

    `late_tokens` were made for a text after it was seen to have left the batch: there must be none.
    `stopped_at`: when the last cancelled text was seen to have left it, in seconds of Unix time.
    """

    tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    failed: int = 0
    late_tokens: int = 0
    stopped_at: float = 0.0

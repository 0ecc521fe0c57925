"""What parsers give, and how far they may go."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BROKEN", "HEADING_CHARS", "PASSWORD", "PIECE_CHARS", "TOO_HEAVY", "Limits", "Refused", "Section"]

PIECE_CHARS = 16_384
"""The longest text of a section; longer ones come as several with the same place."""

HEADING_CHARS = 300

PASSWORD = "The file is protected by a password. Save it without one and upload it again."
BROKEN = "The document is damaged. Open it in its program, save it again and upload the new file."
TOO_HEAVY = (
    "Reading the document took more time or memory than is allowed. "
    "Split it, or save it as PDF or plain text, and upload the result."
)


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a document in reading order: at most `PIECE_CHARS` characters, never blank.

    `page` counts from 1: a PDF's page, a presentation's slide, a workbook's sheet; else None.
    `heading` is the nearest one above the text (a slide's title, a sheet's name), or empty. It is
    not repeated in `text`: index both.
    """

    page: int | None
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """`time_s`: seconds of waiting for the parser (the time its reader takes does not count).
    `memory_bytes`: address space of the child. `unpacked_bytes`: the file unpacked, and the text
    that comes out of it. `pages`: of a PDF, or slides or sheets."""

    time_s: float = 120.0
    memory_bytes: int = 1 << 30
    unpacked_bytes: int = 512 << 20
    pages: int = 10_000


class Refused(Exception):
    """Raised by parsers. `reason` is the name of an `ErrorReason`; the message says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

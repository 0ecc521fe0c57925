"""Characters that no reader should see, and pieces of bearable length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from weftd.knowledge.parsing.section import HEADING_CHARS, PIECE_CHARS, Section

__all__ = ["Outline", "clean", "pieces"]

# Control characters but tab and newline, the soft hyphen, byte order marks, surrogates, noncharacters.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u2060\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
_BREAKS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TRAILING_SPACE = re.compile(r"[^\S\n]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """`text` without control characters, with `\\n` line ends and at most one blank line in a row."""
    text = _BREAKS.sub("\n", text)
    text = _UNWANTED.sub("", text).replace("\xa0", " ")
    return _BLANK_LINES.sub("\n\n", _TRAILING_SPACE.sub("", text))


def pieces(texts: Iterable[str]) -> Iterator[str]:
    """Joins `texts` and cuts them again into pieces of at most `PIECE_CHARS`, at the best place there is."""
    buffer = ""
    for text in texts:
        buffer += text
        while len(buffer) > PIECE_CHARS:
            cut = _cut(buffer)
            yield buffer[:cut]
            buffer = buffer[cut:]
    if buffer:
        yield buffer


def _cut(buffer: str) -> int:
    for mark in ("\n\n", "\n", "。", ". ", " "):
        found = buffer.rfind(mark, PIECE_CHARS // 2, PIECE_CHARS)
        if found >= 0:
            return found + len(mark)
    return PIECE_CHARS


class Outline:
    """Gathers text under headings. A heading with nothing under it opens the next section's text."""

    def __init__(self) -> None:
        self._heading = ""
        self._has_text = True
        self._lonely: list[str] = []
        self._parts: list[str] = []
        self._chars = 0

    def add(self, text: str) -> Iterator[Section]:
        """Text under the current heading. Yields sections as they fill."""
        self._parts.append(text)
        self._chars += len(text)
        if self._chars > 4 * PIECE_CHARS:
            yield from self._flush()

    def start(self, heading: str) -> Iterator[Section]:
        """A new heading. Yields what stood under the one before."""
        heading = " ".join(clean(heading).split())[:HEADING_CHARS]
        if not heading:
            return
        yield from self._flush()
        if not self._has_text:
            self._lonely.append(self._heading)
        self._heading, self._has_text = heading, False

    def finish(self) -> Iterator[Section]:
        """What is left."""
        yield from self._flush()
        if not self._has_text:
            for piece in pieces(["\n\n".join([*self._lonely, self._heading])]):
                yield Section(None, self._heading, piece)

    def _flush(self) -> Iterator[Section]:
        body = "".join(self._parts)
        self._parts, self._chars = [], 0
        if not body.strip():
            return
        lead = "".join(f"{heading}\n\n" for heading in self._lonely)
        self._lonely, self._has_text = [], True
        for piece in pieces([lead, body]):
            yield Section(None, self._heading, piece)

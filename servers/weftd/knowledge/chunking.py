"""Cuts the text of a document into passages.

A passage is as many whole sentences as fit, all of one page and heading. Sizes are tokens of the
embedding model; since a model may lack tokens for a script (a whole word is then one `[UNK]`, or
nothing), characters count too: eight, or two of a script without spaces, weigh at least a token.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from weftd.knowledge.graphemes import is_boundary, nearest_boundary
from weftd.knowledge.parsing.section import Section
from weftd.text.sentences import split_sentences

__all__ = ["Chunk", "Chunker", "TokenSpans", "chunk"]

TokenSpans = Callable[[str], list[tuple[int, int]]]
"""The half-open character spans of a text's tokens, in order."""

# Weights are eighths of a token.
_TOKEN = 8
_WIDE_CHAR = 4
_FIRST_WIDE = "\u2e80"
_PAUSES = frozenset(",;:，；：、。！？…")
_SENTENCE_ENDS = frozenset(".!?。！？…:：;；”」』）)》|")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: `ordinal` counts from 0 through the document; `content` is never blank."""

    ordinal: int
    page: int | None
    heading: str
    content: str


def chunk(
    sections: Iterable[Section], token_spans: TokenSpans, chunk_size: int, overlap: int
) -> Iterator[Chunk]:
    """The passages of a whole document; see `Chunker`."""
    chunker = Chunker(token_spans, chunk_size, overlap)
    for section in sections:
        yield from chunker.add(section)
    yield from chunker.finish()


class Chunker:
    """Takes a document section by section and gives its passages. Python CPU work: off the event loop.

    `chunk_size` is in tokens, at least 1; `overlap` from 0 to half of it. The overlap is the last
    sentences of the passage before if they are short enough, else its last words; it crosses a page only
    where a sentence does, and a heading never. Sections that follow each other with the same page and
    heading are one text. The same sections give the same passages.
    """

    def __init__(self, token_spans: TokenSpans, chunk_size: int, overlap: int) -> None:
        if chunk_size < 1 or not 0 <= overlap * 2 <= chunk_size:
            raise ValueError(f"overlap must be 0 to half of chunk_size, not {overlap} of {chunk_size}")
        self._token_spans = token_spans
        self._size = chunk_size * _TOKEN
        self._overlap = overlap * _TOKEN
        self._ordinal = 0
        self._place: tuple[int | None, str] | None = None
        self._lead: list[_Unit] = []  # repeated from the passage before
        self._fresh: list[_Unit] = []
        self._weight = 0  # of both

    def add(self, section: Section) -> list[Chunk]:
        """The passages that became full."""
        done: list[Chunk] = []
        text = section.text
        place = (section.page, section.heading)
        if place != self._place:
            runs_on = self._runs_on(section)
            done += self._close(self._overlap if runs_on else 0)
            self._place = place
            if self._lead and not _is_wide(text.lstrip()[0]):
                text = " " + text
        elif self._fresh and not self._fresh[-1].text.endswith("\n"):
            text = "\n" + text
        for unit in self._units(text):
            if self._weight + unit.weight > self._size:
                done += self._close(min(self._overlap, self._size - unit.weight))
            self._fresh.append(unit)
            self._weight += unit.weight
        return done

    def finish(self) -> list[Chunk]:
        """The last passage, if something is left."""
        return self._close(0)

    def _close(self, overlap: int) -> list[Chunk]:
        """Ends a passage, if it has anything new, and keeps its end as the lead of the next."""
        units = self._lead + self._fresh
        made: list[Chunk] = []
        if self._place is not None and any(not unit.text.isspace() for unit in self._fresh):
            content = "".join(unit.text for unit in units).strip()
            made.append(Chunk(self._ordinal, *self._place, content))
            self._ordinal += 1
        self._lead, self._fresh = self._tail(units, overlap), []
        self._weight = sum(unit.weight for unit in self._lead)
        return made

    def _runs_on(self, section: Section) -> bool:
        """Whether a sentence goes on from the page before."""
        units = self._fresh or self._lead
        if not units or self._place is None or section.page is None or section.page == self._place[0]:
            return False
        last, first = units[-1].text.rstrip()[-1:], section.text.lstrip()[:1]
        goes_on = first.islower() or (first.isalpha() and _is_wide(first) and _is_wide(last))
        return section.heading == self._place[1] and last not in _SENTENCE_ENDS and goes_on

    def _units(self, text: str) -> Iterator[_Unit]:
        """The sentences of `text`, those that are too long in parts."""
        tokens = _Tokens(text, self._token_spans(text))
        start = end = 0
        for sentence in split_sentences(text):
            end += len(sentence)
            if not is_boundary(text, end):
                continue
            # A part of a sentence leaves room for the overlap.
            room = self._size if tokens.weight(start, end) <= self._size else self._size - self._overlap
            while start < end:
                weight = tokens.weight(start, end)
                cut = end if weight <= room else tokens.cut(start, end, room)
                yield _Unit(text[start:cut], weight if cut == end else tokens.weight(start, cut))
                start = cut

    def _tail(self, units: list[_Unit], budget: int) -> list[_Unit]:
        """The last sentences that weigh no more than `budget`, or the last words of the last sentence."""
        kept: list[_Unit] = []
        for unit in reversed(units):
            if unit.weight > budget:
                if not kept:
                    kept = self._last_words(unit.text, budget)
                break
            budget -= unit.weight
            kept.insert(0, unit)
        return kept

    def _last_words(self, text: str, budget: int) -> list[_Unit]:
        spans = self._token_spans(text) if budget > 0 else []
        tokens = _Tokens(text, spans)
        for start, _ in spans[-(budget // _TOKEN) :]:
            if tokens.weight(start, len(text)) > budget:
                continue
            if _is_break(text, start) or (_is_wide(text[start]) and is_boundary(text, start)):
                return [_Unit(text[start:], tokens.weight(start, len(text)))]
        return []


class _Unit(NamedTuple):
    """A sentence, or a part of one that is too long for a passage, and its weight."""

    text: str
    weight: int


class _Tokens:
    """Weighs and cuts stretches of a text whose tokens are known."""

    def __init__(self, text: str, spans: list[tuple[int, int]]) -> None:
        self._text = text
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]

    def weight(self, start: int, end: int) -> int:
        """In eighths of a token; a token that is only partly within counts whole."""
        tokens = bisect_left(self._starts, end) - bisect_right(self._ends, start)
        wide = sum(map(_is_wide, self._text[start:end]))
        return max(tokens * _TOKEN, wide * _WIDE_CHAR + end - start - wide)

    def cut(self, start: int, end: int, size: int) -> int:
        """Where to end a part of about `size`: after a word, else between tokens or characters."""
        after = bisect_right(self._ends, start) + size // _TOKEN
        if after < len(self._starts):
            end = min(end, max(start + 1, self._starts[after]))
        left = size
        for index in range(start, end):
            left -= _WIDE_CHAR if _is_wide(self._text[index]) else 1
            if left < 0:
                end = index
                break
        for index in range(end, start + (end - start) * 2 // 3, -1):
            if _is_break(self._text, index):
                return index
        return nearest_boundary(self._text, start, end)


def _is_break(text: str, index: int) -> bool:
    """Whether a word ends before `index`, by a space or a mark."""
    before = text[index - 1 : index]
    return (before.isspace() or before in _PAUSES) and is_boundary(text, index)


def _is_wide(char: str) -> bool:
    """Of a script without spaces between words (Chinese, Japanese, and the like), or an emoji."""
    return char >= _FIRST_WIDE

"""Which lines of plain text are headings, told by their words alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["find_headings", "is_body", "may_be_heading"]

# Widths are in columns; a character of a script without spaces has two.
_HEADING_WIDTH = 60
_WIDE_TITLE_WIDTH = 40
_WORDS = 8
_BODY_WIDTH = 40
_FIRST_WIDE = "\u2e80"
_NUMBER = re.compile(
    r"\s*(?:第\s*[一二三四五六七八九十百零\d]{1,5}\s*[章节篇编部]|[一二三四五六七八九十]{1,3}、"
    r"|[（(][一二三四五六七八九十]{1,3}[)）]"
    r"|(?:chapter|section|part|appendix|annex)\s+(?:\d{1,3}|[A-Z]|[IVX]+)\b[.:]?"
    r"|\d{1,2}(?:\.\d{1,2}){1,3}\.?(?=\s|[^\W\d])|\d{1,2}[.、](?!\d))\s*",
    re.I,
)
_DIGITS = re.compile(r"[\d一二三四五六七八九十百零]+")
_BULLET = re.compile(r"\s*(?:[-*+•·▪◦○●|#>]|[a-z]\))")
_MARKS = re.compile(r"[:：。！？!?;；，|=@/]|\d")
_SENTENCE_END = re.compile(r"[.!?:;。！？：；…|][”’\"'）)]*\s*$")
_ENDS = tuple(".…,，、-–—")


def find_headings(lines: Sequence[str]) -> list[bool]:
    """For each line, whether it is a heading: it `may_be_heading`, no sentence is open before it, and body
    text follows it (or a heading of another numbering). Items of a numbered list, labels with their value
    and lines of an address are none."""
    found = [False] * len(lines)
    filled = [index for index, line in enumerate(lines) if line.strip()]
    for place in reversed(range(len(filled) - 1)):
        index, below = filled[place], filled[place + 1]
        above = filled[place - 1] if place else -1
        before = lines[above] if index - above == 1 and above >= 0 else ""
        is_longer = below > index + 1 or _width(lines[below]) >= 2 * _width(
            lines[index]
        )  # else a broken line
        follows = (is_longer and is_body(lines[below])) or (found[below] and bool(_numbering(lines[index])))
        is_closed = not before or bool(
            _SENTENCE_END.search(before) or _BULLET.match(before) or _numbering(before)
        )
        number = _numbering(lines[index])
        is_item = bool(number) and number in (
            _numbering(lines[below]),
            _numbering(lines[above]) if place else "",
        )
        found[index] = follows and is_closed and not is_item and may_be_heading(lines[index])
    return found


def may_be_heading(line: str) -> bool:
    """Short, with a capital first and no sentence's marks; beside its own number it has no digits."""
    number = _NUMBER.match(line)
    title = line[number.end() if number else 0 :].strip()
    if not title or title.endswith(_ENDS) or _MARKS.search(title) or _BULLET.match(title):
        return False
    if _is_wide(title[0]):
        return _width(title) <= (_HEADING_WIDTH if number else _WIDE_TITLE_WIDTH)
    return title[0].isupper() and _width(title) <= _HEADING_WIDTH and len(title.split()) <= _WORDS


def is_body(line: str) -> bool:
    """Whether a line is of running text: a sentence's end, or long; it begins as a sentence does."""
    line = line.strip()
    first = line[:1]
    if first.islower() or _BULLET.match(line):
        return False
    return _width(line) >= _BODY_WIDTH or bool(_SENTENCE_END.search(line))


def _numbering(line: str) -> str:
    """The form of a line's number: "3." and "12." are alike, "3.1" and "三、" are not; empty without one."""
    number = _NUMBER.match(line)
    return _DIGITS.sub("#", number.group().strip()) if number else ""


def _width(text: str) -> int:
    return len(text) + sum(map(_is_wide, text[:_HEADING_WIDTH]))  # beyond it is long anyway


def _is_wide(char: str) -> bool:
    return char >= _FIRST_WIDE

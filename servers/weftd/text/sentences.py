"""Sentences of Chinese and English text."""

from __future__ import annotations

import re

_CLOSERS = "”’」』】》）)\\]\"'"
_CANDIDATE = re.compile(
    rf"[。！？!?｡．]+[{_CLOSERS}]*(?P<gap>\s*)"
    rf"|(?<![.!?])(?P<stops>[.!?]++)[{_CLOSERS}]*+\s+"
    r"|\n[^\S\n]*+\n\s*"
    r"|\n(?=[^\S\n]*+(?:[-*+•·#|>]|\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]{1,3}[)）、]))"
)
_LAST_WORD = re.compile(r"[^\W_]+(?:\.[^\W_]+)*$")
# Followed by a capital within a sentence.
_TITLE = re.compile(r"mrs?|ms|messrs|dr|prof|st|jr|sr|vs|e\.g|i\.e|cf|al|gov|capt|lt|sgt|hon|rev", re.I)
# Followed by a number within a sentence.
_BEFORE_NUMBER = re.compile(
    r"nos?|figs?|eqs?|vol|pp?|ch|sec|art|ca|approx|jan|feb|mar|apr|ju[nl]|aug|sept?|oct|nov|dec", re.I
)


def split_sentences(text: str) -> list[str]:
    """`text` cut after each sentence; joined again, the pieces are exactly `text`.

    White space stays at the end of the sentence before it. A blank line ends a sentence, and so does
    a line before a list item, a heading or a table row; a plain line break does not (PDF text breaks
    lines anywhere). A full stop in an abbreviation, an initial or a number does not either.
    """
    pieces: list[str] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        end = match.end()
        if _continues(text, start, match):
            continue
        if text[start:end].strip():
            pieces.append(text[start:end])
            start = end
    if start < len(text):
        if pieces and not text[start:].strip():
            pieces[-1] += text[start:]
        else:
            pieces.append(text[start:])
    return pieces


def _continues(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether the mark that was found stands within a sentence."""
    following = text[match.end() : match.end() + 1]
    mark = text[match.start()]
    if mark == "．":
        return following.isdecimal()
    if mark in "!?" and match["gap"] == "":
        return following.isascii() and following.isalnum()  # the query of a URL
    if match["stops"] != ".":
        return False
    if following.islower():
        return True
    found = _LAST_WORD.search(text, max(start, match.start() - 20), match.start())
    word = found.group() if found else ""
    if len(word) == 1 and word.isupper() and word.isascii():
        return word != "I"
    if _TITLE.fullmatch(word):
        return True
    return following.isdecimal() and _BEFORE_NUMBER.fullmatch(word) is not None

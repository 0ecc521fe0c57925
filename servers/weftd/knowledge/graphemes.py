"""Where a text may be cut without cutting what a reader sees as one character."""

from __future__ import annotations

import unicodedata

__all__ = ["is_boundary", "nearest_boundary"]

# Unicode's bound for marks on one letter (UAX #15, stream-safe text), with room for long emoji. A run
# of marks beyond it is no character that anybody reads.
_LONGEST = 40
_JOINER = "\u200d"
_SPACING_VOWELS = frozenset("\u0e33\u0eb3")  # letters by category, marks by UAX #29
_VIRAMA_CLASS = 9


def nearest_boundary(text: str, start: int, end: int) -> int:
    """The last place in `(start, end]` where `text` may be cut, else the first behind `end`; never far."""
    before = range(end, max(start, end - _LONGEST), -1)
    behind = range(end + 1, end + _LONGEST)
    return next((index for index in (*before, *behind) if is_boundary(text, index)), end)


def is_boundary(text: str, index: int) -> bool:
    """Whether a character ends before `text[index]` (UAX #29, its rule for prepended marks aside)."""
    if not 0 < index < len(text):
        return True
    before, after = text[index - 1], text[index]
    if after.isascii():
        return not (before == "\r" and after == "\n")
    if _extends(after) or before == _JOINER:
        return False
    if _is_flag_letter(before) and _is_flag_letter(after):
        first = index - 1
        while first > max(0, index - _LONGEST) and _is_flag_letter(text[first - 1]):
            first -= 1
        return (index - first) % 2 == 0  # flags are pairs
    if unicodedata.combining(before) == _VIRAMA_CLASS and unicodedata.category(after) == "Lo":
        return False
    return not ("\u1100" <= before <= "\u115f" and "\u1100" <= after <= "\u115f")  # leading jamo


def _extends(char: str) -> bool:
    return (
        unicodedata.category(char) in ("Mn", "Me", "Mc")
        or char in (_JOINER, "\u200c")
        or "\U0001f3fb" <= char <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= char <= "\U000e007f"  # tags
        or "\u1160" <= char <= "\u11ff"  # vowel and trailing jamo
        or char in _SPACING_VOWELS
    )


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"

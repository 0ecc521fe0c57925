"""What people and their documents say is text, also where it looks like the tokenizer's own marks."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["marks", "plain"]


def marks(tokenizer: Any) -> re.Pattern[str]:
    """What begins and ends turns, and the like: every special token that can be written."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted(special - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def plain(text: str, special: re.Pattern[str]) -> str:
    """`text` in which no mark can be read as one: each gets a space after its first character.

    Else a document could end the question and begin a turn of its own.
    """
    return special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

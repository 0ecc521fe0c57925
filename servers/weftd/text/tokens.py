"""The words by which passages are found: the same for what is indexed and for what is asked."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources

import rjieba

_ACCENTS = re.compile(r"[\u0300-\u036f]+")
_WORD = re.compile(r"[^\W_]")


@cache
def _simplified() -> dict[int, str]:
    """OpenCC's table of single characters, traditional to simplified (the first form it offers)."""
    table: dict[int, str] = {}
    lines = (
        resources.files("opencc").joinpath("dictionary", "TSCharacters.txt").read_text("utf-8").splitlines()
    )
    for line in lines:
        traditional, _, forms = line.partition("\t")
        if len(traditional) == 1 and forms:
            table[ord(traditional)] = forms.split(" ")[0]
    return table


def fold(text: str) -> str:
    """`text` in the one form that is compared: half-width, lower-case, simplified, without accents.

    Its length may differ from that of `text`.
    """
    if text.isascii():
        return text.lower()
    text = text.encode("utf-8", "ignore").decode()  # a lone surrogate is not text
    text = unicodedata.normalize("NFKD", text)
    text = unicodedata.normalize("NFKC", _ACCENTS.sub("", text))
    return text.translate(_simplified()).lower()


def search_tokens(text: str) -> list[str]:
    """The words of `text` in order, with repeats; long Chinese words also give the words within them.

    Punctuation and spaces are left out, so a token never holds a space. About 2 million characters
    a second; holds the GIL for short texts only as long as that takes: call it off the event loop
    for anything longer than a query.
    """
    return [token for token in rjieba.cut_for_search(fold(text)) if _WORD.search(token)]

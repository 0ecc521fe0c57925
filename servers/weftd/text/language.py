"""Which language a text is in, as far as the choice of a route or of an answer's language needs it."""

from __future__ import annotations

import re

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_EAST_ASIAN = re.compile(
    r"[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_WORD = re.compile(r"[^\W\d_]+")
# A Chinese word has about two characters: "什么是GraphRAG" is a Chinese question although most of
# its letters are Latin, and "Who founded 阿里巴巴" is not.
_CHARACTERS_PER_WORD = 2


def is_chinese(text: str) -> bool:
    """Whether most words of `text` are Chinese, counting two characters as a word. False without words."""
    return _mainly(_HAN, text)


def is_east_asian(text: str) -> bool:
    """The same for Chinese, Japanese and Korean together."""
    return _mainly(_EAST_ASIAN, text)


def _mainly(characters: re.Pattern[str], text: str) -> bool:
    rest, count = characters.subn(" ", text)
    return count > _CHARACTERS_PER_WORD * len(_WORD.findall(rest))

"""Text of documents made safe to stand in Markdown: what the reader sees is what the document says."""

from __future__ import annotations

import re
from collections.abc import Callable

_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*\\])([*_])(?=[^\s*_])([^*_]+?)(?<=\S)\1(?![\w*])")
_STRUCK = re.compile(r"~~(?=\S)(.+?)(?<=\S)~~")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"]*\")?\)")
_STRAY = re.compile(r"\*\*|^\s*\*(?=\S)|(?<=\S)\*\s*$")
_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")
_AS_IT_IS = re.compile(rf"{_CODE.pattern}|https?://[^\s<>，。；、）]+")
_SPECIAL = re.compile(r"[\\`*\[\]<|~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_LINE_START = re.compile(r"^(?:[#>+=-]|\d{1,9}(?=[.)]))")
_BACKTICKS = re.compile(r"`+")


def plain(text: str) -> str:
    """`text` without the marks of bold, emphasis, links and pictures; their words stay, code as it is."""
    return _outside(_CODE, text, _unmarked)


def escape(text: str, *, opens_line: bool = False) -> str:
    """One line as Markdown that shows exactly it. Addresses, which renderers link, and code stay."""
    escaped = _outside(_AS_IT_IS, text, lambda part: _SPECIAL.sub(lambda match: "\\" + match.group(), part))
    if not opens_line:
        return escaped
    return _LINE_START.sub(lambda m: m.group() + "\\" if m.group().isdigit() else "\\" + m.group(), escaped)


def code_block(text: str) -> str:
    """`text` in a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def close_fence(text: str) -> str:
    """`text` of ours that was cut, with its last block of code closed if the cut is within it."""
    fences = re.findall(r"^`{3,}$", text, re.MULTILINE)
    return f"{text}\n{fences[-1]}" if len(fences) % 2 else text


def _unmarked(text: str) -> str:
    text = _BOLD.sub(r"\2", _LINK.sub(r"\1", text))
    return _STRAY.sub("", _STRUCK.sub(r"\1", _EMPHASIS.sub(r"\2", text)))


def _outside(kept: re.Pattern[str], text: str, change: Callable[[str], str]) -> str:
    """`text` with `change` made to all that `kept` does not match."""
    parts = []
    end = 0
    for match in kept.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])

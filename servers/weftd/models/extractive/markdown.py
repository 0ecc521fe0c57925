"""Text of documents made safe to stand in Markdown: what the reader sees is what the document says."""

from __future__ import annotations

import re

_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*\\])([*_])(?=[^\s*_])([^*_]+?)(?<=\S)\1(?![\w*])")
_STRUCK = re.compile(r"~~(?=\S)(.+?)(?<=\S)~~")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+\"[^\"]*\")?\)")
_URL = re.compile(r"https?://[^\s<>，。；、）]+")
_SPECIAL = re.compile(r"[\\`*\[\]<|~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_LINE_START = re.compile(r"^(?:[#>+=-]|\d{1,9}(?=[.)]))")
_BACKTICKS = re.compile(r"`+")


def plain(text: str) -> str:
    """`text` without the marks of bold, emphasis, links and pictures; their words stay."""
    text = _LINK.sub(r"\1", text)
    text = _BOLD.sub(r"\2", text)
    return _STRUCK.sub(r"\1", _EMPHASIS.sub(r"\2", text))


def escape(text: str, *, opens_line: bool = False) -> str:
    """One line of plain text as Markdown that shows exactly it. Addresses stay as they are: renderers link them."""
    parts = []
    end = 0
    for url in _URL.finditer(text):
        parts += [_escaped(text[end : url.start()]), url.group().replace("[", "%5B").replace("]", "%5D")]
        end = url.end()
    escaped = "".join([*parts, _escaped(text[end:])])
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


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match.group(), text)

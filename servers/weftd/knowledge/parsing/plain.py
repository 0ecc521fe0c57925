"""Plain text and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weftd.knowledge.parsing.cleaning import Outline, pieces
from weftd.knowledge.parsing.encoding import detect, read_text
from weftd.knowledge.parsing.section import Section

__all__ = ["read_markdown", "read_plain"]

_LINE_CHARS = 64 << 10
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(?:=+|--+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def read_plain(path: Path) -> Iterator[Section]:
    """Sections without a heading."""
    for piece in pieces(read_text(path, detect(path))):
        yield Section(None, "", piece)


def read_markdown(path: Path) -> Iterator[Section]:
    """A section per heading (`# …`, or underlined), code blocks aside; the text stays as it is written."""
    outline = Outline()
    fence = ""
    before = ""  # the last line, which an underline below it makes a heading
    with path.open(encoding=detect(path)) as file:
        while line := file.readline(_LINE_CHARS):
            mark = _FENCE.match(line)
            if mark and not fence:
                fence = mark[1]
            elif mark and mark[1].startswith(fence) and not line.strip(" \t\n`~"):
                fence = ""
            elif not fence and (heading := _ATX.match(line.rstrip("\n"))):
                yield from outline.add(before)
                yield from outline.start(heading[1])
                before = ""
                continue
            elif not fence and _is_paragraph(before) and _SETEXT.match(line.rstrip("\n")):
                yield from outline.start(before)
                before = ""
                continue
            yield from outline.add(before)
            before = line
    yield from outline.add(before)
    yield from outline.finish()


def _is_paragraph(line: str) -> bool:
    # `---` under a blank line is a rule, under a list or table something else.
    return bool(line.strip()) and line.lstrip()[0] not in "-*+>|#:`~" and len(line) < 300

"""The lines of a PDF's page, which of them are headings, and the paragraphs they make."""

from __future__ import annotations

import ctypes
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pypdfium2
import pypdfium2.raw as pdfium

from weftd.knowledge.parsing.cleaning import clean
from weftd.knowledge.parsing.section import HEADING_CHARS
from weftd.text.headings import find_headings, is_body, may_be_heading

__all__ = ["Layout", "unwrap"]

_LARGER = 1.1
_TITLE_CHARS = 90
_FONT_NAME_BYTES = 64
_BREAK = "\r\n"  # between the lines that the PDF reader makes out
_BOLD = re.compile(rb"bold|black|heavy|hei|cmbx", re.I)
_HYPHENS = re.compile("[\x02\ufffe\xad]\\s*\n?")
_SENTENCE_ENDS = tuple(".!?:;。！？：；…”」）)")
_NO_TITLE_ENDS = tuple(".:;,。：；，、…")
_LEADER = re.compile(r"\.\s?\.")  # the dots of a table of contents
_BULLETS = tuple("-*•·▪◦○●")
_LIST_ITEM = re.compile(r"\s*(?:[-*•·▪◦○●]|\(?\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]{1,3}[)）、])")


class _Style(NamedTuple):
    """`size` in points, to the half, as it is seen. Of a line with two styles, the lesser one."""

    size: float
    is_bold: bool


class Layout:
    """Give it the pages in order; it learns from them which style the body text has."""

    def __init__(self) -> None:
        self._chars: Counter[_Style] = Counter()
        self._tops: set[str] = set()

    def parts(self, page: pypdfium2.PdfPage) -> Iterator[tuple[str, str]]:
        """Heading and the text under it, in reading order; either may be empty."""
        text_page = page.get_textpage()
        try:
            # What lies off the page is not read; the styles are those of the whole text only.
            text = text_page.get_text_bounded()
            styles = _styles(text_page, text) if text and text == text_page.get_text_range() else []
        finally:
            text_page.close()
        return self._split(text.split(_BREAK), styles)

    def _split(self, lines: Sequence[str], styles: Sequence[_Style]) -> Iterator[tuple[str, str]]:
        headings = self._headings(lines, styles)
        width = max(map(len, lines))
        heading: list[str] = []
        body: list[str] = []
        for index, line in enumerate(lines):
            if not headings[index]:
                body.append(line)
                continue
            runs_on = not body and styles and styles[index] == styles[index - 1]
            if not (runs_on and len(" ".join([*heading, line])) <= HEADING_CHARS) and (heading or body):
                yield " ".join(heading), unwrap("\n".join(body), width)
                heading, body = [], []
            heading.append(" ".join(clean(line).split()))
        yield " ".join(heading), unwrap("\n".join(body), width)

    def _headings(self, lines: Sequence[str], styles: Sequence[_Style]) -> list[bool]:
        """Lines in larger letters, or in bold ones above body text, or that read as headings."""
        found = find_headings(lines)
        top = lines[0].strip()
        if styles:
            on_page = Counter[_Style]()
            for style, line in zip(styles, lines, strict=True):
                on_page[style] += len(line)
            self._chars += on_page
            body = max(each.most_common(1)[0][0] for each in (self._chars, on_page))
            found = [
                _stands_out(line, style, body, following) or (reads and style.size >= body.size)
                for line, style, following, reads in zip(lines, styles, [*lines[1:], ""], found, strict=True)
            ]
        found[0] = found[0] and top not in self._tops  # the same at the top of each page
        self._tops.add(top)
        return found


def unwrap(text: str, width: int) -> str:
    """Joins the lines of a paragraph, which a PDF breaks wherever they are full (the fullest of the page has
    `width` characters), and mends hyphenation."""
    lines = clean(_HYPHENS.sub("", text)).split("\n")
    out: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        out.append(line)
        stripped = line.rstrip()
        is_short = not following or len(line) < 0.7 * width
        if is_short or stripped.endswith(_SENTENCE_ENDS) or _LIST_ITEM.match(following):
            out.append("\n")
        elif not (_is_wide(stripped[-1:]) and _is_wide(following.lstrip()[:1])):
            out.append(" ")
    return "".join(out).strip()


def _stands_out(line: str, style: _Style, body: _Style, following: str) -> bool:
    """Whether it is a title in larger letters, or in bold ones and body text follows."""
    line = line.strip()
    if style.size >= _LARGER * body.size:
        has_letters = any(map(str.isalpha, line))
        return (
            has_letters
            and len(line) <= _TITLE_CHARS
            and not line.startswith(_BULLETS)
            and not line.endswith(_NO_TITLE_ENDS)
            and not _LEADER.search(line)
        )
    is_bolder = style.is_bold > body.is_bold and style.size >= body.size
    return is_bolder and may_be_heading(line) and is_body(following)


def _styles(text_page: pypdfium2.PdfTextpage, text: str) -> list[_Style]:
    """Of each line of `text`, which is all of the page's."""
    styles = []
    start = 0
    for line in text.split(_BREAK):
        units = len(line.encode("utf-16-le", "surrogatepass")) // 2
        ends = (
            start + len(line) - len(line.lstrip()),
            start + max(0, units - 1 - len(line) + len(line.rstrip())),
        )
        first, last = (_style(text_page, index) for index in ends)
        styles.append(_Style(min(first.size, last.size), first.is_bold and last.is_bold))
        start += units + 2
    return styles


def _style(text_page: pypdfium2.PdfTextpage, index: int) -> _Style:
    """Of the character at a place in the text, in UTF-16 units."""
    char = pdfium.FPDFText_GetCharIndexFromTextIndex(text_page, index)
    matrix = pdfium.FS_MATRIX()
    scale = math.hypot(matrix.c, matrix.d) if pdfium.FPDFText_GetMatrix(text_page, char, matrix) else 1.0
    name = ctypes.create_string_buffer(_FONT_NAME_BYTES)
    pdfium.FPDFText_GetFontInfo(text_page, char, name, _FONT_NAME_BYTES, None)
    size = pdfium.FPDFText_GetFontSize(text_page, char) * scale
    return _Style(round(2 * size) / 2, _BOLD.search(name.raw) is not None)


def _is_wide(char: str) -> bool:
    return char >= "\u2e80"

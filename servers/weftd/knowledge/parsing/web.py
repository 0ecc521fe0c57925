"""HTML: its text under its headings, without scripts, styles and navigation. Nothing is ever fetched."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from weftd.knowledge.parsing.cleaning import Outline
from weftd.knowledge.parsing.encoding import detect, read_text, stays_valid
from weftd.knowledge.parsing.section import Section

__all__ = ["PageText", "read_html"]

_SKIPPED = frozenset(
    ("script", "style", "template", "svg", "math", "noscript", "iframe", "object", "nav", "select")
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BLOCKS = frozenset(
    ["address", "article", "aside", "blockquote", "caption", "dd", "div", "dl", "dt", "fieldset", "figure"]
) | frozenset(
    ["footer", "form", "header", "hr", "main", "ol", "p", "pre", "section", "table", "ul", "figcaption"]
)
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([a-z0-9_:.-]+)", re.I)
_SPACE = re.compile(r"\s+")


def read_html(path: Path) -> Iterator[Section]:
    """A section per heading. Table rows are lines `| a | b |`, list items `- a`."""
    page = PageText()
    for block in read_text(path, _codec(path)):
        page.feed(block)
        yield from page.ready()
    page.close()
    yield from page.finish()


class PageText(HTMLParser):
    """Feed HTML; take the sections that are ready. Keeps no tree, so depth costs nothing."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._outline = Outline()
        self._done: list[Section] = []
        self._skipped: str | None = None
        self._depth = 0
        self._heading: list[str] | None = None
        self._title: list[str] | None = None
        self._pre = 0
        self._cells = 0
        self._in_table = 0
        self._gap = ""  # white space owed before the next text

    def ready(self) -> list[Section]:
        done, self._done = self._done, []
        return done

    def finish(self) -> Iterator[Section]:
        self._end_heading()
        yield from self.ready()
        yield from self._outline.finish()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipped:
            self._depth += tag == self._skipped
        elif tag in _SKIPPED:
            self._skipped, self._depth = tag, 1
        elif tag == "title":
            self._title = []
        elif tag in _HEADINGS:
            self._end_heading()
            self._heading = []
        elif tag == "br":
            self._gap = self._gap or "\n"
        elif tag == "li":
            self._gap = "\n- "
        elif tag == "tr":
            self._cells = 0
            self._in_table += 1
        elif tag in ("td", "th"):
            self._gap = " | " if self._cells else "\n| "
            self._cells += 1
        elif tag in _BLOCKS:
            self._block()
            self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            self._depth -= tag == self._skipped
            if self._depth == 0:
                self._skipped = None
        elif tag == "title":
            self._take_title()
        elif tag in _HEADINGS:
            self._end_heading()
        elif tag == "tr":
            self._in_table = max(0, self._in_table - 1)
            self._cells = 0
            self._gap = "\n"
        elif tag in _BLOCKS:
            self._block()
            self._pre = max(0, self._pre - (tag == "pre"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _SKIPPED:  # `<svg/>` opens nothing
            self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._title is not None:
            self._title.append(data)
        elif self._heading is not None:
            self._heading.append(data)
        elif self._pre:
            self._put(data)
        else:
            text = _SPACE.sub(" ", data)
            if text == " ":
                self._gap = self._gap or " "
                return
            if text.startswith(" "):
                self._gap = self._gap or " "
            self._put(text.strip(" "))
            self._gap = " " if text.endswith(" ") else ""

    def _put(self, text: str) -> None:
        if text:
            self._done += self._outline.add(self._gap + text)
            self._gap = ""

    def _block(self) -> None:
        # Within a table cell or right after a list mark, a block starts no paragraph.
        if not (self._in_table and self._cells) and not self._gap.endswith("- "):
            self._gap = "\n\n"

    def _end_heading(self) -> None:
        if self._heading is not None:
            self._done += self._outline.start("".join(self._heading))
            self._heading, self._gap = None, ""

    def _take_title(self) -> None:
        if self._title is not None:
            self._done += self._outline.start("".join(self._title))
            self._title = None


def _codec(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4096)
    declared = _CHARSET.search(head)
    if declared and not head.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        name = declared[1].decode("ascii").lower()
        # Browsers read these two as the set that holds them.
        name = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252"}.get(name, name)
        try:
            is_text = codecs.lookup(name)._is_text_encoding
        except LookupError:
            is_text = False
        if is_text and stays_valid(path, name):
            return name
    return detect(path)

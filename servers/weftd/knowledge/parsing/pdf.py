"""PDF, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

from weftd.knowledge.parsing.cleaning import clean, pieces
from weftd.knowledge.parsing.layout import Layout
from weftd.knowledge.parsing.section import HEADING_CHARS, PASSWORD, Limits, Refused, Section

__all__ = ["read_pdf"]

_MAX_BOOKMARKS = 20_000
_TAIL_BYTES = 4096
# A short line that is the same on every page, its number aside, is a scanner's stamp and no text.
_STAMP_CHARS = 40
_NUMBER = re.compile(r"\d+")
_SENTENCE_ENDS = tuple(".!?:;。！？：；…”」）)")
_LIST_ITEM = re.compile(r"\s*(?:[-*•·▪◦○●]|\(?\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]{1,3}[)）、])")
_BROKEN = "The PDF is damaged or was cut off. Open it, save or print it as a new PDF and upload that."


def read_pdf(path: Path, limits: Limits) -> Iterator[Section]:
    """At least a section per page. The heading is the nearest line above that is one, or bookmark."""
    document = _open(path)
    count = len(document)
    if count > limits.pages:
        raise Refused("DOCUMENT_TOO_LARGE", f"It has {count} pages; {limits.pages} can be read. Split it.")
    bookmarks = _bookmarks(document)
    layout = Layout()
    outline = _Outline()
    stamps: set[str] = set()
    has_text = False
    pictures = 0
    for number in range(1, count + 1):
        try:
            page = document[number - 1]
            parts = list(layout.parts(page))
            text = "\n".join(filter(None, chain.from_iterable(parts)))
            if len(text) <= _STAMP_CHARS:
                pictures += _has_picture(page)
            page.close()
        except pypdfium2.PdfiumError as error:
            raise Refused("DOCUMENT_BROKEN", f"Page {number} cannot be read. {_BROKEN}") from error
        if not has_text and text:
            stamps.add(_NUMBER.sub("#", text))
            has_text = len(text) > _STAMP_CHARS or len(stamps) > 1 or count < 3
        yield from outline.page(number, parts, bookmarks.get(number, []), is_last=number == count)
    if not has_text and pictures >= max(1, count / 2):
        raise Refused(
            "DOCUMENT_NEEDS_OCR",
            "The pages are pictures without text. Run text recognition (OCR) on it and upload the result.",
        )


class _Outline:
    """The heading that holds. One with nothing under it waits for the next page, or opens the next text."""

    def __init__(self) -> None:
        self._heading = ""
        self._is_bare = False
        self._lonely: list[str] = []

    def page(
        self, number: int, parts: list[tuple[str, str]], bookmarks: list[str], *, is_last: bool
    ) -> Iterator[Section]:
        if bookmarks and not self._is_bare:
            opening = " ".join(parts[0]).lstrip()
            if not self._heading or opening.startswith(bookmarks[0][:20]):
                self._heading = bookmarks[0]
        for title, body in parts:
            if title:
                self._lonely += [self._heading] if self._is_bare else []
                self._heading, self._is_bare = title[:HEADING_CHARS], True
            if body:
                yield from self._sections(number, body)
        if self._is_bare and (is_last or not any(body for _, body in parts)):
            yield from self._sections(number, self._heading)
        if bookmarks and not self._is_bare and bookmarks[-1] not in dict(parts):
            self._heading = bookmarks[-1]

    def _sections(self, number: int, text: str) -> Iterator[Section]:
        for piece in pieces([*(f"{heading}\n\n" for heading in self._lonely), text]):
            yield Section(number, self._heading, piece)
        self._is_bare, self._lonely = False, []


def _open(path: Path) -> pypdfium2.PdfDocument:
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise Refused("DOCUMENT_ENCRYPTED", PASSWORD) from error
        if error.err_code == pdfium.FPDF_ERR_SECURITY:
            raise Refused(
                "DOCUMENT_ENCRYPTED",
                "The PDF's encryption cannot be read. Save it without and upload it again.",
            ) from error
        raise Refused("DOCUMENT_BROKEN", _BROKEN) from error
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        # The reader mends a file that was cut off, and drops pages in silence.
        if b"%%EOF" not in file.read():
            raise Refused("DOCUMENT_BROKEN", _BROKEN)
    if len(document) == 0:
        raise Refused("DOCUMENT_BROKEN", f"The PDF has no pages. {_BROKEN}")
    return document


def _bookmarks(document: pypdfium2.PdfDocument) -> dict[int, list[str]]:
    """Page → the bookmarks that point at it, in their order."""
    found: dict[int, list[str]] = {}
    for bookmark in islice(document.get_toc(), _MAX_BOOKMARKS):
        target = bookmark.get_dest()
        index = target.get_index() if target else None
        title = " ".join(clean(bookmark.get_title()).split())[:HEADING_CHARS]
        if index is not None and index >= 0 and title:
            found.setdefault(index + 1, []).append(title)
    return found


def _has_picture(page: pypdfium2.PdfPage) -> bool:
    return any(True for _ in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4))

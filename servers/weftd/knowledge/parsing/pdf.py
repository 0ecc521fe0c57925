"""PDF, page by page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

from weftd.knowledge.parsing.cleaning import clean, pieces
from weftd.knowledge.parsing.section import HEADING_CHARS, PASSWORD, Limits, Refused, Section

__all__ = ["read_pdf", "unwrap"]

_MAX_BOOKMARKS = 20_000
_TAIL_BYTES = 4096
# A short line that is the same on every page, its number aside, is a scanner's stamp and no text.
_STAMP_CHARS = 40
_NUMBER = re.compile(r"\d+")
_HYPHENS = re.compile("[\x02\ufffe\xad]\\s*\n?")
_SENTENCE_ENDS = tuple(".!?:;。！？：；…”」）)")
_LIST_ITEM = re.compile(r"\s*(?:[-*•·▪◦○●]|\(?\d{1,3}[.)、]|[（(]?[一二三四五六七八九十]{1,3}[)）、])")
_BROKEN = "The PDF is damaged or was cut off. Open it, save or print it as a new PDF and upload that."


def read_pdf(path: Path, limits: Limits) -> Iterator[Section]:
    """A section per page (more where it is very long); the heading is the nearest bookmark's."""
    document = _open(path)
    count = len(document)
    if count > limits.pages:
        raise Refused("DOCUMENT_TOO_LARGE", f"It has {count} pages; {limits.pages} can be read. Split it.")
    headings = _headings(document)
    heading = ""
    stamps: set[str] = set()
    has_text = False
    pictures = 0
    for number in range(1, count + 1):
        starts = headings.get(number, ())
        heading = heading or (starts[0] if starts else "")
        try:
            page = document[number - 1]
            text = _text(page)
            if len(text) <= _STAMP_CHARS:
                pictures += _has_picture(page)
            page.close()
        except pypdfium2.PdfiumError as error:
            raise Refused("DOCUMENT_BROKEN", f"Page {number} cannot be read. {_BROKEN}") from error
        if starts and text.lstrip().startswith(starts[0][:20]):
            heading = starts[0]
        if not has_text and text:
            stamps.add(_NUMBER.sub("#", text))
            has_text = len(text) > _STAMP_CHARS or len(stamps) > 1 or count < 3
        for piece in pieces([text]):
            yield Section(number, heading, piece)
        heading = starts[-1] if starts else heading
    if not has_text and pictures >= max(1, count / 2):
        raise Refused(
            "DOCUMENT_NEEDS_OCR",
            "The pages are pictures without text. Run text recognition (OCR) on it and upload the result.",
        )


def unwrap(text: str) -> str:
    """Joins the lines of a paragraph, which a PDF breaks wherever they are full, and mends hyphenation."""
    text = clean(_HYPHENS.sub("", text.replace("\r\n", "\n")))
    lines = text.split("\n")
    full = 0.7 * max(map(len, lines))
    out: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        out.append(line)
        stripped = line.rstrip()
        is_short = not following or len(line) < full
        if is_short or stripped.endswith(_SENTENCE_ENDS) or _LIST_ITEM.match(following):
            out.append("\n")
        elif not (_is_wide(stripped[-1:]) and _is_wide(following.lstrip()[:1])):
            out.append(" ")
    return "".join(out).strip()


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


def _headings(document: pypdfium2.PdfDocument) -> dict[int, list[str]]:
    """Page → the bookmarks that point at it, in their order."""
    found: dict[int, list[str]] = {}
    for bookmark in islice(document.get_toc(), _MAX_BOOKMARKS):
        target = bookmark.get_dest()
        index = target.get_index() if target else None
        title = " ".join(clean(bookmark.get_title()).split())[:HEADING_CHARS]
        if index is not None and index >= 0 and title:
            found.setdefault(index + 1, []).append(title)
    return found


def _text(page: pypdfium2.PdfPage) -> str:
    text_page = page.get_textpage()
    try:
        return unwrap(text_page.get_text_bounded())
    finally:
        text_page.close()


def _has_picture(page: pypdfium2.PdfPage) -> bool:
    return any(True for _ in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4))


def _is_wide(char: str) -> bool:
    return char >= "\u2e80"

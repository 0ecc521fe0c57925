"""Makes documents of every format that Weft reads, and of some it must refuse.

The good ones come from one outline: `Part`s, each with a heading and paragraphs, in English or Chinese.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import docx
import openpyxl
import pikepdf
import pptx
from reportlab.lib.utils import ImageReader, simpleSplit
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

__all__ = [
    "MAKERS",
    "Part",
    "csv_table",
    "encrypted_pdf",
    "html",
    "markdown",
    "pdf",
    "plain",
    "png",
    "powerpoint",
    "repacked",
    "scanned_pdf",
    "word",
    "workbook",
]

_WIDTH, _HEIGHT, _MARGIN = 595, 842, 72


class Part(NamedTuple):
    """A chapter of a document: a PDF's page, a slide, a sheet, or what stands under a heading."""

    heading: str
    paragraphs: Sequence[str]


def pdf(parts: Iterable[Part], *, bookmarks: bool = True) -> bytes:
    """Each part begins a page; long ones run over several. Lines are broken where they are full."""
    out = io.BytesIO()
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    canvas = Canvas(out, pagesize=(_WIDTH, _HEIGHT), pageCompression=1)
    for number, part in enumerate(parts):
        if bookmarks:
            canvas.bookmarkPage(f"part{number}")
            canvas.addOutlineEntry(part.heading, f"part{number}")
        y = _HEIGHT - _MARGIN
        for text, size in [(part.heading, 16), *((paragraph, 11) for paragraph in part.paragraphs)]:
            font = "Helvetica" if text.isascii() else "STSong-Light"
            for line in _lines(text, font, size):
                if y < _MARGIN:
                    canvas.showPage()
                    y = _HEIGHT - _MARGIN
                canvas.setFont(font, size)
                canvas.drawString(_MARGIN, y, line)
                y -= 1.4 * size
            y -= 11
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def _lines(text: str, font: str, size: int) -> list[str]:
    width = _WIDTH - 2 * _MARGIN
    if text.isascii():
        return list(simpleSplit(text, font, size, width))
    step = width // size
    return [text[start : start + step] for start in range(0, len(text), step)]


def scanned_pdf(pages: int = 2, stamp: str = "") -> bytes:
    """Pages that are pictures, with a scanner's line of text where there is a stamp."""
    out = io.BytesIO()
    canvas = Canvas(out, pagesize=(_WIDTH, _HEIGHT))
    picture = ImageReader(io.BytesIO(png()))
    for number in range(pages):
        canvas.drawImage(picture, 0, 0, _WIDTH, _HEIGHT)
        if stamp:
            canvas.drawString(20, 20, f"{stamp} {number + 1}")
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def encrypted_pdf(parts: Iterable[Part], *, user: str = "secret") -> bytes:
    """Needs the password `user` to open; with an empty one anybody may read, but not change it."""
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(pdf(parts))) as document:
        document.save(out, encryption=pikepdf.Encryption(owner="owner", user=user))
    return out.getvalue()


def png() -> bytes:
    """A small picture."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (60, 80), (200, 180, 160)).save(out, "PNG")
    return out.getvalue()


def word(parts: Iterable[Part]) -> bytes:
    document = docx.Document()
    for part in parts:
        document.add_heading(part.heading, level=1)
        for paragraph in part.paragraphs:
            document.add_paragraph(paragraph)
    return _saved(document.save)


def powerpoint(parts: Iterable[Part]) -> bytes:
    presentation = pptx.Presentation()
    for part in parts:
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = part.heading
        slide.placeholders[1].text = "\n".join(part.paragraphs)
    return _saved(presentation.save)


def workbook(parts: Iterable[Part]) -> bytes:
    """A sheet a part, under the header `No`, `Text`."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for part in parts:
        sheet = book.create_sheet(part.heading[:31])
        sheet.append(["No", "Text"])
        for number, paragraph in enumerate(part.paragraphs, start=1):
            sheet.append([number, paragraph])
    return _saved(book.save)


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    save(out)
    return out.getvalue()


def html(parts: Iterable[Part]) -> bytes:
    body = "".join(
        f"<section><h2>{part.heading}</h2>{''.join(f'<p>{text}</p>' for text in part.paragraphs)}</section>"
        for part in parts
    )
    return f"<!doctype html><html><head><meta charset=utf-8></head><body>{body}</body></html>".encode()


def markdown(parts: Iterable[Part]) -> bytes:
    return "\n\n".join(f"## {part.heading}\n\n" + "\n\n".join(part.paragraphs) for part in parts).encode()


def plain(parts: Iterable[Part], codec: str = "utf-8") -> bytes:
    return "\n\n".join("\n\n".join([part.heading, *part.paragraphs]) for part in parts).encode(codec)


def csv_table(parts: Iterable[Part], codec: str = "utf-8") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["Topic", "Text"])
    writer.writerows([part.heading, paragraph] for part in parts for paragraph in part.paragraphs)
    return out.getvalue().encode(codec)


def repacked(package: bytes, **replaced: bytes) -> bytes:
    """An Office file with some parts replaced or added; `__` stands for `/` in their names, `_` before
    the ending for the dot."""
    names = {key.replace("__", "/")[::-1].replace("_", ".", 1)[::-1]: data for key, data in replaced.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            if part.filename not in names:
                new.writestr(part.filename, old.read(part))
        for name, data in names.items():
            new.writestr(name, data)
    return out.getvalue()


MAKERS: dict[str, Callable[[Iterable[Part]], bytes]] = {
    ".pdf": pdf,
    ".docx": word,
    ".pptx": powerpoint,
    ".xlsx": workbook,
    ".html": html,
    ".md": markdown,
    ".txt": plain,
    ".csv": csv_table,
}
"""File ending → maker, for every format."""

"""Word and PowerPoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from weftd.knowledge.parsing.cleaning import pieces
from weftd.knowledge.parsing.section import Limits, Refused, Section
from weftd.knowledge.parsing.web import PageText

__all__ = ["read_docx", "read_pptx"]

_TITLES = """
p[style-name='Title'] => h1:fresh
p[style-name='Subtitle'] => p:fresh
p[style-name='标题'] => h1:fresh
"""
_GROUP_DEPTH = 20


def read_docx(path: Path) -> Iterator[Section]:
    """A section per heading; tables, lists, text boxes and notes are in the text. Pages are not known."""
    import mammoth

    with path.open("rb") as file:
        html = mammoth.convert_to_html(
            file,
            style_map=_TITLES,
            include_embedded_style_map=False,
            external_file_access=False,
            ignore_empty_paragraphs=True,
            convert_image=lambda image: [],  # else every picture becomes text
        ).value
    page = PageText()
    page.feed(html)
    page.close()
    yield from page.finish()


def read_pptx(path: Path, limits: Limits) -> Iterator[Section]:
    """A slide is a page, its title the heading; tables, groups and the speaker's notes are in the text."""
    import pptx

    slides = pptx.Presentation(str(path)).slides
    if len(slides) > limits.pages:
        raise Refused(
            "DOCUMENT_TOO_LARGE", f"It has {len(slides)} slides; {limits.pages} can be read. Split it."
        )
    for number, slide in enumerate(slides, start=1):
        title = slide.shapes.title
        heading = " ".join(title.text_frame.text.split()) if title is not None else ""
        others = (shape for shape in slide.shapes if title is None or shape.shape_id != title.shape_id)
        body = list(_texts(others, 0))
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            body.append(slide.notes_slide.notes_text_frame.text)
        text = "\n\n".join(part for part in body if part.strip()) or heading
        for piece in pieces([text]):
            yield Section(number, heading, piece)


def _texts(shapes: Iterable[Any], depth: int) -> Iterator[str]:
    for shape in shapes:
        if hasattr(shape, "shapes") and depth < _GROUP_DEPTH:
            yield from _texts(shape.shapes, depth + 1)
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                cells = [" ".join(cell.text_frame.text.split()) for cell in row.cells]
                if any(cells):
                    yield f"| {' | '.join(cells)} |"
        elif getattr(shape, "has_text_frame", False):
            lines = [paragraph.text.strip() for paragraph in shape.text_frame.paragraphs]
            yield "\n\n".join(line for line in lines if line)

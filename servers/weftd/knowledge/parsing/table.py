"""Tables as lines that each make sense alone: CSV and Excel."""

from __future__ import annotations

import csv
import datetime
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from weftd.knowledge.parsing.cleaning import pieces
from weftd.knowledge.parsing.encoding import detect
from weftd.knowledge.parsing.section import Limits, Refused, Section

__all__ = ["read_csv", "read_xlsx", "rows_as_lines"]

_CELL_CHARS = 1 << 20
_SAMPLE_CHARS = 16 << 10


def rows_as_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """`| Name: Tea | Price: 3 |` for each row that has something.

    The header is the first row of two or more cells if all of them are words; a cell then carries its
    column's name, so that a passage with ten rows from the middle of a table can still be read. The
    header row itself, and rows above it, are written without names.
    """
    header: list[str] | None = None
    for row in rows:
        cells = [_shown(cell) for cell in row]
        filled = [cell for cell in cells if cell]
        if not filled:
            continue
        if header is None:
            if len(filled) >= 2:
                header = cells if all(map(_is_label, filled)) and len(set(filled)) == len(filled) else []
            yield f"| {' | '.join(filled)} |\n"
            continue
        named = [
            f"{header[column]}: {cell}" if column < len(header) and header[column] else cell
            for column, cell in enumerate(cells)
            if cell
        ]
        yield f"| {' | '.join(named)} |\n"


def read_csv(path: Path) -> Iterator[Section]:
    """Any of `, ; tab |` between cells. A table of rows without a heading."""
    codec = detect(path)
    with path.open(encoding=codec, newline="") as file:
        sample = file.read(_SAMPLE_CHARS)
    csv.field_size_limit(_CELL_CHARS)
    with path.open(encoding=codec, newline="") as file:
        rows = csv.reader(_lines(file), delimiter=_delimiter(sample))
        try:
            for piece in pieces(rows_as_lines(rows)):
                yield Section(None, "", piece)
        except csv.Error as broken:
            raise Refused(
                "DOCUMENT_BROKEN",
                f"The table cannot be read near line {rows.line_num}: a quotation mark is not closed, or "
                "a cell is longer than a million characters. Mend it and upload it again.",
            ) from broken


def read_xlsx(path: Path, limits: Limits) -> Iterator[Section]:
    """A sheet is a page, its name the heading. Formulas give the values that were saved with them."""
    # openpyxl takes numpy where it finds it: half of its start-up, and threads, for nothing here.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]  # None is how an import is forbidden
    import openpyxl

    # By a path it would insist on the ending.
    book = openpyxl.load_workbook(path.open("rb"), read_only=True, data_only=True, keep_links=False)
    sheets = book.worksheets
    if len(sheets) > limits.pages:
        raise Refused(
            "DOCUMENT_TOO_LARGE", f"It has {len(sheets)} sheets; {limits.pages} can be read. Split it."
        )
    for number, sheet in enumerate(sheets, start=1):
        sheet.reset_dimensions()  # what the file says of them may be absurd
        for piece in pieces(rows_as_lines(sheet.iter_rows(values_only=True))):
            yield Section(number, sheet.title, piece)


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_CELL_CHARS):  # never a whole gigabyte
        yield line.replace("\0", "")


def _delimiter(sample: str) -> str:
    """The one that cuts the first lines into the same number of cells, the more the better."""
    lines = [line for line in sample.splitlines()[:20] if line.strip()]

    def score(mark: str) -> tuple[int, int]:
        counts = [line.count(mark) for line in lines]
        usual = max(set(counts), key=counts.count, default=0)
        return (counts.count(usual) if usual else 0, usual)

    return max(",;\t|", key=score)


def _shown(cell: object) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return "TRUE" if cell else "FALSE"
        case float():
            return f"{cell:.10g}"
        case datetime.datetime() if cell.time() == datetime.time():
            return cell.date().isoformat()
        case datetime.datetime():
            return cell.isoformat(" ", "seconds")
    return " ".join(str(cell).split())


def _is_label(cell: str) -> bool:
    return len(cell) <= 80 and not cell.replace(",", "").replace(".", "").strip("-+%$¥€ ").isdecimal()

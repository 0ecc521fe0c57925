"""Headings of a PDF without bookmarks are told from its text, and stand apart from it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from tests.documents import Part, pdf
from weftd.knowledge.parsing.pdf import read_pdf
from weftd.knowledge.parsing.section import Limits

LEAVE = [
    "Every full-time employee is entitled to twenty-five days of annual leave in a calendar year.",
    "Leave that has not been taken by the end of March of the next year is lost without pay.",
]
TRAVEL = [
    "Train journeys are made in second class; first class is for journeys of more than four hours.",
    "Hotel costs are refunded up to 140 euros a night, and the receipts are kept for ten years.",
]
ENGLISH = [Part("3. Annual leave", [" ".join(LEAVE)]), Part("4. Travel expenses", [" ".join(TRAVEL)])]
CHINESE = [
    Part(
        "第三章 差旅报销",
        ["员工出差应事先取得部门主管的书面批准，并在返回后十五个工作日内提交报销单和发票原件。"],
    ),
    Part(
        "第四章 休假", ["员工入职满一年后，每年享有十五天带薪年假，年假须提前三个工作日向直属主管提出申请。"]
    ),
]

Line = tuple[str, str, float]  # text, font, size


def drawn(*pages: Sequence[Line], scale: float = 1.0) -> bytes:
    """Line by line; with a `scale` the letters are as large, but the font is said to be of another size."""
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    out = io.BytesIO()
    canvas = Canvas(out)
    for page in pages:
        canvas.scale(scale, scale)
        y = 780.0
        for text, font, size in page:
            canvas.setFont(font, size / scale)
            canvas.drawString(72 / scale, y / scale, text)
            y -= 1.5 * size
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def sections(tmp_path: Path, data: bytes) -> list[tuple[int | None, str, str]]:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return [(each.page, each.heading, each.text.replace(".\n", ". ")) for each in read_pdf(path, Limits())]


def body(*lines: str) -> list[Line]:
    return [(line, "Helvetica" if line.isascii() else "STSong-Light", 11) for line in lines]


@pytest.mark.parametrize("parts", [ENGLISH, CHINESE], ids=["english", "chinese"])
@pytest.mark.parametrize("bookmarks", [True, False])
def test_a_heading_in_larger_letters(tmp_path: Path, parts: list[Part], bookmarks: bool) -> None:
    found = sections(tmp_path, pdf(parts, bookmarks=bookmarks))
    assert found == [(page, part.heading, part.paragraphs[0]) for page, part in enumerate(parts, 1)]


@pytest.mark.parametrize(
    "heading", ["3. Annual leave", "3.1 Annual leave", "Chapter 3: Leave", "Annual leave"]
)
def test_a_heading_in_the_letters_of_the_text(tmp_path: Path, heading: str) -> None:
    found = sections(tmp_path, drawn(body(heading, *LEAVE, "4. Travel expenses", *TRAVEL)))
    assert found == [
        (1, heading, " ".join(LEAVE)),
        (1, "4. Travel expenses", " ".join(TRAVEL)),
    ]


@pytest.mark.parametrize("heading", ["第三章 差旅报销", "三、差旅报销", "3.差旅报销", "差旅报销"])
def test_a_chinese_heading_in_the_letters_of_the_text(tmp_path: Path, heading: str) -> None:
    text = CHINESE[0].paragraphs[0]
    assert sections(tmp_path, drawn(body(heading, text[:30], text[30:]))) == [(1, heading, text)]


def test_a_bold_heading_and_a_bold_label(tmp_path: Path) -> None:
    page = [
        ("Annual leave of 2031", "Helvetica-Bold", 11),
        *body(*LEAVE),
        ("Remote work", "Helvetica-Bold", 11),
    ]
    page += [*body(TRAVEL[0]), ("Total 450 euros", "Helvetica-Bold", 11), *body(TRAVEL[1])]
    found = sections(tmp_path, drawn(page))
    assert [heading for _, heading, _ in found] == ["", "Remote work"]
    assert "Total 450 euros" in found[1][2]


def test_letters_are_as_large_as_they_are_seen(tmp_path: Path) -> None:
    found = sections(tmp_path, drawn([("rules for leave", "Helvetica", 18), *body(*LEAVE)], scale=11))
    assert [heading for _, heading, _ in found] == ["rules for leave"]


def test_a_heading_over_two_lines_under_a_title(tmp_path: Path) -> None:
    titles = [
        ("Handbook", "Helvetica", 24),
        ("Leave of employees who", "Helvetica", 16),
        ("work part time", "Helvetica", 16),
    ]
    ((page, heading, text),) = sections(tmp_path, drawn([*titles, *body(*LEAVE)]))
    assert (page, heading) == (1, "Leave of employees who work part time")
    assert text.startswith("Handbook\n\nEvery")


def test_a_heading_at_the_foot_of_a_page_holds_on_the_next(tmp_path: Path) -> None:
    foot = [*body(*LEAVE), ("Travel", "Helvetica", 16)]
    found = sections(tmp_path, drawn(foot, body(*TRAVEL)))
    assert [(page, heading) for page, heading, _ in found] == [(1, ""), (2, "Travel")]


def test_nothing_is_lost_of_pages_with_a_title_only(tmp_path: Path) -> None:
    parts = [Part("Cover", []), Part("Leave", LEAVE), Part("Thank you", [])]
    found = sections(tmp_path, pdf(parts, bookmarks=True))
    assert [(page, heading) for page, heading, _ in found] == [(1, "Cover"), (2, "Leave"), (3, "Thank you")]
    found = sections(tmp_path, pdf(parts, bookmarks=False))
    assert [(page, text) for page, _, text in found[::2]] == [(1, "Cover"), (3, "Thank you")]


def test_no_words_are_lost_where_much_is_in_larger_letters(tmp_path: Path) -> None:
    poster = [(f"Word{number} of a long poster", "Helvetica", 14) for number in range(30)]
    found = sections(tmp_path, drawn([*poster, *body(*LEAVE * 6)]))
    text = "\n".join(f"{heading}\n{text}" for _, heading, text in found)
    assert all(f"Word{number} of" in text for number in range(30))


def test_what_is_no_heading(tmp_path: Path) -> None:
    lines = [
        "Phone: 555 0100",
        "Price: 3",
        "What to bring:",
        "1. Passport",
        "2. Tickets",
        "3. Receipts",
        TRAVEL[1],
    ]
    ((_, heading, text),) = sections(tmp_path, drawn(body(LEAVE[0], "", *lines)))
    assert heading == ""
    assert "\n".join(lines) in text


def test_what_stands_at_the_top_of_each_page_is_a_heading_once(tmp_path: Path) -> None:
    top = "Employee handbook"
    chapter = [("Leave", "Helvetica", 16)]
    found = sections(tmp_path, drawn([*body(top), *chapter, *body(*LEAVE)], body(top, *TRAVEL)))
    assert [heading for _, heading, _ in found] == ["", "Leave", "Leave"]

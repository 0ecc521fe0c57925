"""Every format gives its text, in order, with its pages and headings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest

from tests import documents
from tests.documents import Part
from weftd.knowledge.parsing.child import read
from weftd.knowledge.parsing.section import PIECE_CHARS, Limits, Refused, Section

ENGLISH = [
    Part("Tea houses", ["The tea house opens at nine. It closes at six.", "Dogs are welcome & so are cats."]),
    Part("Prices", ["A pot of green tea costs 12 dollars."]),
]
CHINESE = [
    Part("茶馆", ["茶馆早上九点开门，晚上六点关门。", "欢迎带狗。"]),
    Part("价格", ["一壶绿茶十二元。"]),
]

Parse = Callable[[str, bytes], list[Section]]


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    def run(name: str, data: bytes) -> list[Section]:
        path = tmp_path / "blob"
        path.write_bytes(data)
        return list(read(path, name, Limits()))

    return run


def everything(sections: list[Section]) -> str:
    return "\n".join(f"{section.heading}\n{section.text}" for section in sections)


@pytest.mark.parametrize("ending", documents.MAKERS)
@pytest.mark.parametrize("parts", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_all_text_in_order(parse: Parse, ending: str, parts: list[Part]) -> None:
    text = everything(parse("name" + ending, documents.MAKERS[ending](parts)))
    place = 0
    for part in parts:
        for expected in (part.heading, *part.paragraphs):
            found = text.find(expected, place)
            assert found >= 0, (expected, text)
            place = found if expected != part.heading else place


@pytest.mark.parametrize("ending", [".pdf", ".docx", ".pptx", ".xlsx", ".html", ".md"])
def test_headings_are_kept(parse: Parse, ending: str) -> None:
    sections = parse("x" + ending, documents.MAKERS[ending](CHINESE))
    assert [section.heading for section in sections] == ["茶馆", "价格"]


@pytest.mark.parametrize("ending", [".pdf", ".pptx", ".xlsx"])
def test_pages_count_from_one(parse: Parse, ending: str) -> None:
    sections = parse("x" + ending, documents.MAKERS[ending](ENGLISH))
    assert [section.page for section in sections] == [1, 2]


def test_a_pdf_paragraph_is_one_line_again(parse: Parse) -> None:
    sentence = (
        "The committee decided after a long debate that the old bridge over the river must be repaired soon. "
    )
    chinese = (
        "委员会经过长时间的讨论决定必须尽快修复河上的旧桥并且重新铺设两岸的道路以方便居民出行" * 3 + "。"
    )
    sections = parse("x.pdf", documents.pdf([Part("Bridge", [sentence * 4]), Part("桥", [chinese])]))
    assert (sentence * 4).strip() in sections[0].text
    assert chinese in sections[1].text


def test_a_pdf_page_without_bookmark_keeps_the_last_heading(parse: Parse) -> None:
    long = Part("Long", ["Words and words. " * 600])
    sections = parse("x.pdf", documents.pdf([long, Part("Next", ["End."])]))
    assert len(sections) > 3
    assert [section.page for section in sections] == list(range(1, len(sections) + 1))
    assert {section.heading for section in sections[:-1]} == {"Long"}
    assert sections[-1].heading == "Next"


def test_a_pdf_with_some_text_pages_is_read(parse: Parse, tmp_path: Path) -> None:
    import io

    import pikepdf

    with (
        pikepdf.open(io.BytesIO(documents.scanned_pdf(3))) as whole,
        pikepdf.open(io.BytesIO(documents.pdf(ENGLISH))) as text,
    ):
        whole.pages.extend(text.pages)
        out = io.BytesIO()
        whole.save(out)
    assert [section.page for section in parse("x.pdf", out.getvalue())] == [4, 5]


def test_markdown(parse: Parse) -> None:
    source = (
        "# Guide\n\n## Install\n\nRun it.\n\n```sh\n# not a heading\n```\n\n"
        "Under\n=====\n\nlast\n\n---\n\n## Alone\n"
    )
    sections = parse("x.md", source.encode())
    assert [section.heading for section in sections] == ["Install", "Under", "Alone"]
    assert sections[0].text.startswith("Guide\n")
    assert "# not a heading" in sections[0].text
    assert sections[2].text == "Alone"


def test_html(parse: Parse) -> None:
    source = """<html><head><title>Site</title><script>evil()</script><style>p {}</style></head><body>
    <nav>Home | About</nav><h1>Tea &amp; <b>more</b></h1><p>One
    line.<br>Two.</p><ul><li><p>a</p></li><li>b</li></ul>
    <table><tr><th>Name</th><th>Price</th></tr><tr><td><p>Tea</p></td><td>3</td></tr></table>
    <pre>x = 1
y = 2</pre><svg/><p>end</p><!-- hidden --></body></html>"""
    (section,) = parse("x.html", source.encode())
    assert section.heading == "Tea & more"
    lines = [line for line in section.text.split("\n") if line]
    assert lines[:5] == ["Site", "One line.", "Two.", "- a", "- b"]
    assert lines[5:] == ["| Name | Price", "| Tea | 3", "x = 1", "y = 2", "end"]


def test_html_in_its_declared_encoding(parse: Parse) -> None:
    page = "<html><head><meta charset='gb2312'></head><body><p>茶馆早上九点开门镕。</p></body></html>"
    assert "茶馆早上九点开门镕" in parse("x.htm", page.encode("gb18030"))[0].text


def test_word_tables_lists_and_pictures(parse: Parse, tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("报告", level=0)
    table = document.add_table(rows=2, cols=2)
    for row, values in zip(table.rows, [("Name", "Price"), ("Tea", "3")], strict=True):
        for cell, value in zip(row.cells, values, strict=True):
            cell.text = value
    document.add_paragraph("first", style="List Bullet")
    picture = tmp_path / "p.png"
    picture.write_bytes(documents.png())
    document.add_picture(str(picture))
    document.add_paragraph("last")
    document.save(str(tmp_path / "d.docx"))
    (section,) = parse("d.docx", (tmp_path / "d.docx").read_bytes())
    assert section.heading == "报告"
    assert [line for line in section.text.split("\n") if line] == [
        "| Name | Price",
        "| Tea | 3",
        "- first",
        "last",
    ]


def test_slides_with_tables_groups_and_notes(parse: Parse, tmp_path: Path) -> None:
    presentation = pptx.Presentation()
    slide = presentation.slides.add_slide(presentation.slide_layouts[5])
    slide.shapes.title.text = "Title"
    table = slide.shapes.add_table(1, 2, 0, 0, 9999, 9999).table
    table.cell(0, 0).text, table.cell(0, 1).text = "a", "b"
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, 9, 9).text_frame.text = "in a group"
    slide.notes_slide.notes_text_frame.text = "a note"
    only_title = presentation.slides.add_slide(presentation.slide_layouts[5])
    only_title.shapes.title.text = "End"
    presentation.slides.add_slide(presentation.slide_layouts[6])
    presentation.save(str(tmp_path / "p.pptx"))
    sections = parse("p.pptx", (tmp_path / "p.pptx").read_bytes())
    assert sections == [Section(1, "Title", "| a | b |\n\nin a group\n\na note"), Section(2, "End", "End")]


def test_workbook_rows_name_their_columns(parse: Parse, tmp_path: Path) -> None:
    import datetime

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "库存"
    sheet.append(["Stock list"])
    sheet.append([])
    sheet.append(["Name", "Price", "Since"])
    sheet.append(["Tea", 12.50, datetime.datetime(2024, 5, 1)])
    sheet.append(["Milk", None, True])
    sheet["Z9"] = "far"
    book.create_sheet("empty")
    book.save(tmp_path / "b.xlsx")
    (section,) = parse("b.xlsx", (tmp_path / "b.xlsx").read_bytes())
    assert (section.page, section.heading) == (1, "库存")
    assert section.text.splitlines() == [
        "| Stock list |",
        "| Name | Price | Since |",
        "| Name: Tea | Price: 12.5 | Since: 2024-05-01 |",
        "| Name: Milk | Since: TRUE |",
        "| far |",
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_csv(parse: Parse, mark: str, codec: str) -> None:
    source = f'名称{mark}价格\r\n绿茶{mark}"十二\n元"\r\n红茶{mark}九元\r\n'
    (section,) = parse("x.csv", source.encode(codec))
    assert section.text.splitlines() == [
        "| 名称 | 价格 |",
        "| 名称: 绿茶 | 价格: 十二 元 |",
        "| 名称: 红茶 | 价格: 九元 |",
    ]


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk"]
)
@pytest.mark.parametrize(
    "text",
    [
        "茶馆早上九点开门，晚上六点关门。",
        "The tea house (茶馆) opens at nine o'clock.\nIt closes at six: “six”.",
        "茶館早上九點開門，晚上六點關門，歡迎光臨。",
    ],
)
def test_encodings(parse: Parse, codec: str, text: str) -> None:
    assert parse("x.txt", text.encode(codec))[0].text == text


def test_a_long_text_turns_chinese_late(parse: Parse) -> None:
    text = "Only English here. " * 8000 + "然后是中文。"
    assert everything(parse("x.txt", text.encode("gb18030"))).endswith("然后是中文。")


@pytest.mark.parametrize(
    "data",
    [
        "Le café est fermé à l’été, naïve garçon.".encode("cp1252"),
        "茶館早上九點開門，晚上六點關門。".encode("big5"),
    ],
    ids=["cp1252", "big5"],
)
def test_an_unknown_encoding_is_said(parse: Parse, data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        parse("x.txt", data)
    assert refused.value.reason == "ENCODING_UNKNOWN"
    assert "UTF-8" in refused.value.message


def test_control_characters_are_gone(parse: Parse) -> None:
    (section,) = parse(
        "x.txt", b"a\x00b\x1b[0mc\r\nd\x07\x0ce\xef\xbb\xbff\xc2\xa0g   \n\n\n\nh" + b" padding" * 20
    )
    assert section.text.startswith("ab[0mc\nd\nef g\n\nh padding")


@pytest.mark.parametrize("name", ["README", "notes.log", "数据.json", "x.unknown"])
def test_other_names_are_read_as_what_they_are(parse: Parse, name: str) -> None:
    assert "九点" in parse(name, "茶馆早上九点开门。".encode())[0].text
    assert parse(name, documents.pdf(ENGLISH))[0].page == 1


def test_a_gigantic_line_comes_in_pieces(parse: Parse) -> None:
    for name in ("x.txt", "x.md", "x.html"):
        sections = parse(name, b"x" * 3_000_000)
        assert all(len(section.text) <= PIECE_CHARS for section in sections)
        assert sum(len(section.text) for section in sections) == 3_000_000

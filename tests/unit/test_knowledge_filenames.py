"""File names as real clients send them."""

from __future__ import annotations

import pytest

from weftd.knowledge.filenames import clean_name, header_parameters


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (b'form-data; name="file"; filename="report.pdf"', "report.pdf"),
        (b"form-data; name=file; filename=report.pdf", "report.pdf"),
        ('form-data; name="file"; filename="季度 报告.docx"'.encode(), "季度 报告.docx"),
        ('form-data; name="file"; filename="季度报告.docx"'.encode("gb18030"), "季度报告.docx"),
        (b'form-data; name="file"; filename="a%22b.txt"', 'a"b.txt'),
        (b'form-data; name="file"; filename="100%25.txt"', "100%25.txt"),
        (rb'form-data; name="file"; filename="a\"b;c.txt"', 'a"b;c.txt'),
        (b'form-data; name="file"; filename="x.txt"; filename*=UTF-8\'\'%E5%AD%A3.txt', "季.txt"),
        (b"form-data; name=\"file\"; filename*=iso-8859-1'en'%A3.txt", "£.txt"),
        (b"form-data; name=\"file\"; filename*=nonsense''%E5%AD%A3.txt", "季.txt"),
        (
            b'form-data; name="file"; filename*0*=UTF-8\'\'%E5%AD; filename*1*=%A3; filename*2=".txt"',
            "季.txt",
        ),
        (b'form-data; name="file"; filename=""', ""),
    ],
)
def test_the_name_that_was_meant(header: bytes, name: str) -> None:
    kind, parameters = header_parameters(header)
    assert (kind, parameters["name"], parameters["filename"]) == ("form-data", "file", name)


def test_a_header_without_parameters() -> None:
    assert header_parameters(b"Multipart/Form-Data") == ("multipart/form-data", {})
    assert header_parameters(b"") == ("", {})


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("C:\\Users\\me\\plan.doc", "plan.doc"),
        ("../../etc/passwd", "passwd"),
        ("a\x00b\r\n\u202e.txt", "ab.txt"),
        ("  spaced.txt ", "spaced.txt"),
        ("cafe\u0301.md", "café.md"),
        ("..", ""),
        ("dir/", ""),
        ("\x7f", ""),
        ("👩\u200d🔬.txt", "👩🔬.txt"),
    ],
)
def test_only_the_name_itself_is_kept(sent: str, kept: str) -> None:
    assert clean_name(sent) == kept

"""What cannot or must not be read is refused by its reason, with a message that says what to do."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import documents
from tests.documents import Part
from weftd.knowledge.parsing.child import read
from weftd.knowledge.parsing.section import Limits, Refused

PARTS = [Part("Tea", ["The tea house opens at nine."] * 3), Part("Price", ["Twelve dollars."])]
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


def refusal(tmp_path: Path, name: str, data: bytes, limits: Limits | None = None) -> Refused:
    path = tmp_path / "blob"
    path.write_bytes(data)
    with pytest.raises(Refused) as refused:
        list(read(path, name, limits or Limits()))
    assert refused.value.message.endswith(".")
    return refused.value


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


@pytest.mark.parametrize("ending", [*documents.MAKERS, ""])
def test_empty(tmp_path: Path, ending: str) -> None:
    assert refusal(tmp_path, "x" + ending, b"").reason == "DOCUMENT_EMPTY"


@pytest.mark.parametrize("name", ["x.txt", "x.md", "x.html", "x.csv"])
def test_without_text(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path, name, b" \n\n \r\n").reason == "DOCUMENT_WITHOUT_TEXT"


@pytest.mark.parametrize("ending", [".docx", ".pptx"])
def test_office_without_text(tmp_path: Path, ending: str) -> None:
    assert refusal(tmp_path, "x" + ending, documents.MAKERS[ending]([])).reason == "DOCUMENT_WITHOUT_TEXT"


def test_blank_pdf(tmp_path: Path) -> None:
    data = documents.pdf([Part("", [])], bookmarks=False)
    assert refusal(tmp_path, "x.pdf", data).reason == "DOCUMENT_WITHOUT_TEXT"


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("x.pdf", documents.png(), "PNG"),
        ("x.pdf", b"Just words.", "a text"),
        ("x.docx", documents.pdf(PARTS), "a PDF"),
        ("x.pdf", documents.word(PARTS), "Word"),
        ("x.docx", documents.workbook(PARTS), "Excel"),
        ("x.txt", b"MZ\x90\x00\x03" + bytes(range(256)), "Windows program"),
        ("x.md", documents.powerpoint(PARTS), "PowerPoint"),
        ("x.xlsx", zipped(a=b"b"), "ZIP"),
        ("x.docx", OLE, "old Office"),
        ("x.txt", bytes(range(256)) * 8, "unknown binary"),
        ("x.html", b"\x7fELF" + bytes(90), "Linux program"),
    ],
)
def test_mislabelled(tmp_path: Path, name: str, data: bytes, what: str) -> None:
    refused = refusal(tmp_path, name, data)
    assert refused.reason == "DOCUMENT_BROKEN"
    assert "not what its name says" in refused.message
    assert what in refused.message


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.doc", OLE),
        ("x.xls", OLE),
        ("x.png", documents.png()),
        ("x.jpg", b"\xff\xd8\xff\xe0" + bytes(60)),
        ("x.mp3", b"ID3\x03" + bytes(60)),
        ("x.wav", b"RIFF....WAVE" + bytes(60)),
        ("x.mp4", b"\0\0\0\x18ftypmp42" + bytes(60)),
        ("x.zip", zipped(a=b"b")),
        ("x.epub", zipped(mimetype=b"application/epub+zip")),
        ("x.gz", b"\x1f\x8b\x08\0\0\0\0\0"),
        ("x.tar", tarred()),
        ("x.exe", b"MZ\x90\x00\x03" + bytes(90)),
        ("x.rtf", rb"{\rtf1 hello}"),
        ("x.bin", bytes(range(256)) * 8),
    ],
)
def test_unsupported_formats_name_the_supported(tmp_path: Path, name: str, data: bytes) -> None:
    refused = refusal(tmp_path, name, data)
    assert refused.reason == "FORMAT_UNSUPPORTED"
    assert "PDF, Word (.docx)" in refused.message


def test_encrypted(tmp_path: Path) -> None:
    assert refusal(tmp_path, "x.pdf", documents.encrypted_pdf(PARTS)).reason == "DOCUMENT_ENCRYPTED"
    office = OLE + "EncryptedPackage".encode("utf-16-le") + bytes(400)
    for name in ("x.docx", "x.xlsx", "x.pptx", "x"):
        refused = refusal(tmp_path, name, office)
        assert refused.reason == "DOCUMENT_ENCRYPTED"
        assert "password" in refused.message


def test_a_pdf_that_anybody_may_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(documents.encrypted_pdf(PARTS, user=""))
    assert len(list(read(path, "x.pdf", Limits()))) == 2


@pytest.mark.parametrize("stamp", ["", "Scanned by ScanApp, page"])
def test_scanned(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "blob"
    path.write_bytes(documents.scanned_pdf(4, stamp))
    with pytest.raises(Refused) as refused:
        list(read(path, "x.pdf", Limits()))
    assert refused.value.reason == "DOCUMENT_NEEDS_OCR"
    assert "OCR" in refused.value.message


@pytest.mark.parametrize("ending", [".docx", ".pptx", ".xlsx", ".pdf"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
def test_cut_off(tmp_path: Path, ending: str, kept: float) -> None:
    whole = documents.MAKERS[ending](PARTS)
    path = tmp_path / "blob"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(Exception) as failed:  # a parser may raise anything
        list(read(path, "x" + ending, Limits()))
    assert getattr(failed.value, "reason", "DOCUMENT_BROKEN") == "DOCUMENT_BROKEN"


def test_no_pages(tmp_path: Path) -> None:
    data = (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n"
    )
    assert refusal(tmp_path, "x.pdf", data + b"trailer<</Root 1 0 R>>\n%%EOF").reason == "DOCUMENT_BROKEN"


def test_too_many_pages(tmp_path: Path) -> None:
    for ending in (".pdf", ".pptx", ".xlsx"):
        refused = refusal(tmp_path, "x" + ending, documents.MAKERS[ending](PARTS), Limits(pages=1))
        assert refused.reason == "DOCUMENT_TOO_LARGE"
        assert "2" in refused.message


def test_too_large(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path, "x.txt", b"word " * 100, Limits(unpacked_bytes=99)).reason == "DOCUMENT_TOO_LARGE"
    )
    bomb = documents.repacked(documents.word(PARTS), word__media__big_xml=bytes(100 << 20))
    refused = refusal(tmp_path, "x.docx", bomb)
    assert refused.reason == "DOCUMENT_TOO_LARGE"
    assert "unpacks to 100 MiB" in refused.message


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">]><x>&a;</x>'


@pytest.mark.parametrize("data", [LAUGHS, LAUGHS.decode().replace('"1.0"', "'1.0'").encode("utf-16")])
@pytest.mark.parametrize("ending", [".docx", ".pptx", ".xlsx"])
def test_entities(tmp_path: Path, ending: str, data: bytes) -> None:
    part = {".docx": "word__document_xml", ".pptx": "ppt__presentation_xml", ".xlsx": "xl__workbook_xml"}[
        ending
    ]
    bomb = documents.repacked(documents.MAKERS[ending](PARTS), **{part: data})
    refused = refusal(tmp_path, "x" + ending, bomb)
    assert refused.reason == "DOCUMENT_BROKEN"
    assert "entities" in refused.message


def test_a_quotation_mark_that_never_closes(tmp_path: Path) -> None:
    refused = refusal(tmp_path, "x.csv", b'a,b\n1,"' + b"word " * 300_000)
    assert refused.reason == "DOCUMENT_BROKEN"
    assert "quotation mark" in refused.message

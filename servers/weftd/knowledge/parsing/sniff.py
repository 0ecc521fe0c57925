"""What a file is, told by its bytes; its name must agree.

A file whose ending names a format that we read must hold that format: what its owner believes to
have uploaded is not what would be indexed, so it is refused and the message says what it is. A file
with another ending, or none, is read as what it is.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path, PurePath
from typing import Literal

from weftd.knowledge.parsing import encoding, package
from weftd.knowledge.parsing.section import PASSWORD, Limits, Refused

__all__ = ["READABLE", "Format", "sniff"]

Format = Literal["pdf", "docx", "pptx", "xlsx", "html", "markdown", "csv", "text"]

READABLE = "PDF, Word (.docx), PowerPoint (.pptx), Excel (.xlsx), HTML, Markdown, plain text and CSV"

_ENDINGS: dict[str, Format] = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
}
_OFFICE = {"docx": "Word document", "pptx": "PowerPoint presentation", "xlsx": "Excel workbook"}
_SIGNATURES: tuple[tuple[bytes, int, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", 0, "a PNG picture"),
    (b"\xff\xd8\xff", 0, "a JPEG picture"),
    (b"GIF8", 0, "a GIF picture"),
    (b"BM", 0, "a BMP picture"),
    (b"II*\x00", 0, "a TIFF picture"),
    (b"MM\x00*", 0, "a TIFF picture"),
    (b"WEBP", 8, "a WebP picture"),
    (b"ftyphei", 4, "a HEIC picture"),
    (b"ftypavif", 4, "an AVIF picture"),
    (b"ftyp", 4, "an MP4 video or sound"),
    (b"WAVE", 8, "a sound file"),
    (b"AVI ", 8, "a video"),
    (b"ID3", 0, "a sound file"),
    (b"\xff\xfb", 0, "a sound file"),
    (b"OggS", 0, "a sound file"),
    (b"fLaC", 0, "a sound file"),
    (b"\x1aE\xdf\xa3", 0, "a video"),
    (b"7z\xbc\xaf\x27\x1c", 0, "a 7-Zip archive"),
    (b"Rar!", 0, "a RAR archive"),
    (b"\x1f\x8b", 0, "a gzip archive"),
    (b"BZh", 0, "a bzip2 archive"),
    (b"\xfd7zXZ\x00", 0, "an xz archive"),
    (b"\x28\xb5\x2f\xfd", 0, "a zstd archive"),
    (b"ustar", 257, "a tar archive"),
    (b"MZ", 0, "a Windows program"),
    (b"\x7fELF", 0, "a Linux program"),
    (b"\xcf\xfa\xed\xfe", 0, "a macOS program"),
    (b"\xca\xfe\xba\xbe", 0, "a program"),
    (b"{\\rtf", 0, "a rich text (RTF) file"),
    (b"%!PS", 0, "a PostScript file"),
    (b"SQLite format 3", 0, "a database"),
)
# Two bytes that a plain text may well begin with: only with a NUL behind them.
_WEAK = (b"BM", b"MZ", b"\xff\xfb", b"\x1f\x8b")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(
    rb"^\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)


def sniff(path: Path, name: str, limits: Limits) -> Format:
    """The format to read the file as.

    Raises `Refused`: DOCUMENT_EMPTY, DOCUMENT_TOO_LARGE, DOCUMENT_ENCRYPTED, DOCUMENT_BROKEN (not what
    its name says, or a damaged package), FORMAT_UNSUPPORTED.
    """
    size = path.stat().st_size
    if size == 0:
        raise Refused(
            "DOCUMENT_EMPTY", "The file is empty. Check that it was saved completely and upload it again."
        )
    if size > limits.unpacked_bytes:
        raise Refused("DOCUMENT_TOO_LARGE", "The file is too large to read. Split it and upload the parts.")
    with path.open("rb") as file:
        head = file.read(4096)
    named = _ENDINGS.get(PurePath(name).suffix.lower())
    found, what = _look(path, head, limits, named)
    if named in (None, found):
        if found is None:
            raise Refused(
                "FORMAT_UNSUPPORTED", f"This is {what}, which cannot be read. Readable are {READABLE}."
            )
        return found
    if found in ("text", "html") and named in ("html", "markdown", "csv", "text"):
        return named  # texts differ by their names only
    ending = PurePath(name).suffix
    advice = (
        f"Rename it to end in .{found} and upload it again."
        if found in ("pdf", "docx", "pptx", "xlsx")
        else f"Upload it as one of these: {READABLE}."
    )
    raise Refused(
        "DOCUMENT_BROKEN", f"The file is not what its name says: it ends in {ending} but is {what}. {advice}"
    )


def _look(path: Path, head: bytes, limits: Limits, named: Format | None) -> tuple[Format | None, str]:
    """The format if we read it, and what the file is in words."""
    if b"%PDF-" in head[:1024]:
        return "pdf", "a PDF"
    if head.startswith(_OLE):
        if package.is_encrypted_office(path):
            raise Refused("DOCUMENT_ENCRYPTED", PASSWORD)
        return None, "an old Office file (.doc, .xls, .ppt: save it as .docx, .xlsx, .pptx) or a relative"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _look_into_zip(path, limits, named)
    for signature, offset, what in _SIGNATURES:
        if head.startswith(signature, offset) and (signature not in _WEAK or b"\0" in head):
            return None, what
    if _HTML.match(head):
        return "html", "an HTML page"
    if encoding.looks_binary(head):
        return None, "a file of an unknown binary format"
    return "text", "a text"


def _look_into_zip(path: Path, limits: Limits, named: Format | None) -> tuple[Format | None, str]:
    try:
        kind = package.kind(path, limits)
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError) as broken:
        if named in _OFFICE:
            raise Refused(
                "DOCUMENT_BROKEN",
                f"The {_OFFICE[named]} is damaged or was cut off. Open it, save it again and upload that.",
            ) from broken
        return None, "a damaged ZIP archive"
    if kind is None:
        return None, "a ZIP archive or another packed file"
    article = "an" if kind == "xlsx" else "a"
    return kind, f"{article} {_OFFICE[kind]}"

"""Office files from outside: ZIP packages, and the OLE containers of old or encrypted ones."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

from weftd.knowledge.parsing.section import PASSWORD, Limits, Refused

__all__ = ["is_encrypted_office", "kind"]

_MAIN_PARTS: dict[str, Literal["docx", "pptx", "xlsx"]] = {
    "word/document.xml": "docx",
    "ppt/presentation.xml": "pptx",
    "xl/workbook.xml": "xlsx",
}
_MAX_PARTS = 20_000
# Real workbooks pack up to about 1:60; a bomb of one deflated zero block 1:1000.
_MAX_RATIO = 200
_RATIO_MATTERS_FROM = 64 << 20
_XML_PROLOGUE = 64 << 10
_DOCTYPE = re.compile(rb"<\0?!\0?(?:D\0?O\0?C\0?T\0?Y\0?P\0?E|E\0?N\0?T\0?I\0?T\0?Y)")
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")


def kind(path: Path, limits: Limits) -> Literal["docx", "pptx", "xlsx"] | None:
    """Which Office package the ZIP file is; None: another archive.

    Raises `zipfile.BadZipFile` where it is damaged; `Refused` where it is encrypted or would unpack to
    more than its limit (sizes are the declared ones: reading never goes past them), or where a part
    declares entities, which no Office program writes.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        found = next((_MAIN_PARTS[part.filename] for part in parts if part.filename in _MAIN_PARTS), None)
        if found is None:
            return None
        if any(part.flag_bits & 1 for part in parts):
            raise Refused("DOCUMENT_ENCRYPTED", PASSWORD)
        unpacked = sum(part.file_size for part in parts)
        packed = sum(part.compress_size for part in parts)
        is_bomb = unpacked > _RATIO_MATTERS_FROM and unpacked > _MAX_RATIO * packed
        if unpacked > limits.unpacked_bytes or is_bomb or len(parts) > _MAX_PARTS:
            raise Refused(
                "DOCUMENT_TOO_LARGE",
                f"The file unpacks to {unpacked >> 20} MiB in {len(parts)} parts, more than can be read. "
                "Split it, or save it as PDF, and upload the result.",
            )
        for part in parts:
            if part.filename.endswith((".xml", ".rels")):
                with archive.open(part) as stream:
                    if _DOCTYPE.search(stream.read(_XML_PROLOGUE)):
                        raise Refused(
                            "DOCUMENT_BROKEN",
                            "The file declares XML entities, which no Office program does. "
                            "Open it in one, save it again and upload the new file.",
                        )
    return found


def is_encrypted_office(path: Path) -> bool:
    """Whether an OLE container holds an encrypted Office package."""
    tail = b""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if _ENCRYPTED_PACKAGE in tail + block:
                return True
            tail = block[-len(_ENCRYPTED_PACKAGE) :]
    return False

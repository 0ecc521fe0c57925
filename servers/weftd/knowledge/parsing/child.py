"""The process that reads one document: `python -m weftd.knowledge.parsing.child`.

Stdin: one JSON object `{path, name, parent, limits: {…}}`. Stdout: a JSON line `{page, heading, text}`
for each section, then one of `{"end": true}`, `{"reason", "message"}` or `{"missing": true}` (the file
is not there). An end without that line is a death. The limits bind this process only; it ends with its
parent.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from weftd.knowledge.parsing.cleaning import clean
from weftd.knowledge.parsing.section import BROKEN, TOO_HEAVY, Limits, Refused, Section
from weftd.knowledge.parsing.sniff import sniff
from weftd.priority import give_way

__all__ = ["main", "read"]

_PR_SET_PDEATHSIG = 1


def read(path: Path, name: str, limits: Limits) -> Iterator[Section]:
    """The sections of a document, in this process. Raises `Refused`, and whatever a parser raises."""
    empty = True
    for section in _sections(path, name, limits):
        text = clean(section.text)
        if text.strip():
            empty = False
            yield Section(section.page, clean(section.heading).strip(), text)
    if empty:
        raise Refused("DOCUMENT_WITHOUT_TEXT", "The document has no text, so there is nothing to find in it.")


def _sections(path: Path, name: str, limits: Limits) -> Iterator[Section]:
    # Imported where needed: most documents need one of these, and some take longer to load than to run.
    match sniff(path, name, limits):
        case "pdf":
            from weftd.knowledge.parsing.pdf import read_pdf

            return read_pdf(path, limits)
        case "docx":
            from weftd.knowledge.parsing.office import read_docx

            return read_docx(path)
        case "pptx":
            from weftd.knowledge.parsing.office import read_pptx

            return read_pptx(path, limits)
        case "xlsx":
            from weftd.knowledge.parsing.table import read_xlsx

            return read_xlsx(path, limits)
        case "csv":
            from weftd.knowledge.parsing.table import read_csv

            return read_csv(path)
        case "html":
            from weftd.knowledge.parsing.web import read_html

            return read_html(path)
        case "markdown":
            from weftd.knowledge.parsing.plain import read_markdown

            return read_markdown(path)
        case "text":
            from weftd.knowledge.parsing.plain import read_plain

            return read_plain(path)


def main() -> None:
    job = json.load(sys.stdin.buffer)
    limits = Limits(**job["limits"])
    _confine(job["parent"], limits)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not mix with the sections
        last = _run(Path(job["path"]), job["name"], limits, out)
        out.write(json.dumps(last).encode() + b"\n")


def _run(path: Path, name: str, limits: Limits, out: BinaryIO) -> dict[str, object]:
    """Writes the sections; returns the last line."""
    if not path.is_file():
        return {"missing": True}
    left = limits.unpacked_bytes
    try:
        for section in read(path, name, limits):
            line = json.dumps(asdict(section), ensure_ascii=False).encode()
            left -= len(line)
            if left < 0:
                raise Refused("DOCUMENT_TOO_LARGE", "The document has more text than can be read. Split it.")
            out.write(line + b"\n")
            out.flush()
    except Refused as refused:
        return {"reason": refused.reason, "message": refused.message}
    except (MemoryError, RecursionError, SystemError):
        return {"reason": "PARSER_LIMIT", "message": TOO_HEAVY}
    except Exception as error:
        # lxml reports a failed allocation as an error in the text (and expat's callbacks as a SystemError).
        if "memory" in str(error).lower():
            return {"reason": "PARSER_LIMIT", "message": TOO_HEAVY}
        return {"reason": "DOCUMENT_BROKEN", "message": BROKEN, "cause": type(error).__name__}
    return {"end": True}


def _confine(parent: int, limits: Limits) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)
    give_way()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    seconds = math.ceil(limits.time_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


if __name__ == "__main__":
    main()

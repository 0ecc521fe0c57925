"""Reads a document in a child process that cannot harm or outlive this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from weft.v1.error_reason_pb2 import ErrorReason
from weftd.children import kill_group
from weftd.errors import FailedPrecondition
from weftd.knowledge.parsing.section import BROKEN, TOO_HEAVY, Limits, Section

__all__ = ["parse_document"]

_LINE_BYTES = 1 << 20
_PREFIX = "ERROR_REASON_"
_CHILD = "weftd.knowledge.parsing.child"
# The child gets no more of our environment, in which there may be keys.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
_KILLED_BY_A_LIMIT = (signal.SIGKILL, signal.SIGXCPU)

log = structlog.get_logger()


async def parse_document(path: Path, name: str, limits: Limits | None = None) -> AsyncGenerator[Section]:
    """The sections of the file at `path`, in order, as they are read; `name` is what its owner calls it.

    Wrap it in `contextlib.aclosing`: leaving it, or a cancel, kills the child. While the caller does
    not ask for the next section the child waits, and that time does not count.

    Raises `FailedPrecondition`, also after some sections, which then are worth nothing: DOCUMENT_EMPTY,
    DOCUMENT_TOO_LARGE, FORMAT_UNSUPPORTED, DOCUMENT_ENCRYPTED, DOCUMENT_NEEDS_OCR, DOCUMENT_BROKEN,
    PARSER_LIMIT, DOCUMENT_WITHOUT_TEXT, ENCODING_UNKNOWN. Raises `FileNotFoundError` where `path` is none.
    """
    limits = limits or Limits()
    clock = asyncio.get_running_loop().time
    left_s = limits.time_s
    process = await _start()
    try:
        assert process.stdin is not None and process.stdout is not None
        job = {"path": str(path), "name": name, "parent": os.getpid(), "limits": asdict(limits)}
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        while True:
            began = clock()
            try:
                async with asyncio.timeout(left_s):
                    line = await process.stdout.readline()
                    if not line.endswith(b"\n"):
                        await process.wait()
            except ValueError:  # a line without an end
                line = b""
            except TimeoutError:
                raise _refusal("PARSER_LIMIT", TOO_HEAVY) from None
            left_s -= clock() - began
            section = _section(line, path, process)
            if section is None:
                return
            yield section
    finally:
        await kill_group(process)


async def _start() -> Process:
    environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        _CHILD,
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        limit=_LINE_BYTES,
        start_new_session=True,
        env=environment | {"OPENBLAS_NUM_THREADS": "1"},
    )


def _section(line: bytes, path: Path, process: Process) -> Section | None:
    """None at the end. Raises what the child reports, or what its death or its nonsense means."""
    message: Any = None
    with contextlib.suppress(ValueError):
        message = json.loads(line)
    match message:
        case {"page": int() | None as page, "heading": str() as heading, "text": str() as text}:
            return Section(page, heading, text)
        case {"end": True}:
            return None
        case {"missing": True}:
            raise FileNotFoundError(path)
        case {"reason": str() as reason, "message": str() as text} if _PREFIX + reason in ErrorReason.keys():  # noqa: SIM118
            log.info("document_refused", reason=reason, cause=message.get("cause"))
            raise _refusal(reason, text)
    status = process.returncode or 0
    log.warning("parser_died", status=status, line_bytes=len(line))
    if -status in _KILLED_BY_A_LIMIT:
        raise _refusal("PARSER_LIMIT", TOO_HEAVY)
    raise _refusal("DOCUMENT_BROKEN", BROKEN)


def _refusal(reason: str, message: str) -> FailedPrecondition:
    value: ErrorReason.ValueType = ErrorReason.Value(_PREFIX + reason)
    return FailedPrecondition(value, message)

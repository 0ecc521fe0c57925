"""Log files that stay small while they are written to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

__all__ = ["keep_small"]

_LIMIT_BYTES = 64 << 20
_LOOK_EVERY_S = 10.0

log = structlog.get_logger()


async def keep_small(files: Iterable[Path], limit_bytes: int = _LIMIT_BYTES) -> None:
    """Empties each file that has grown above the limit, its content moved to `.1`; until cancelled.

    Whoever writes must have opened it for appending, and goes on in the emptied file. What is written
    between the copy's end and the cut, some microseconds, is lost.
    """
    files = list(files)
    while True:
        for file in files:
            try:
                await asyncio.to_thread(_cut, file, limit_bytes)
            except OSError as error:
                log.warning("log file not cut", file=str(file), error=error.strerror)
        await asyncio.sleep(_LOOK_EVERY_S)


def _cut(file: Path, limit_bytes: int) -> None:
    if not file.exists() or file.stat().st_size <= limit_bytes:
        return
    with file.open("rb") as source, file.with_name(f"{file.name}.1").open("wb") as kept:
        while piece := source.read(1 << 20):
            kept.write(piece)
        os.truncate(file, 0)

"""Watches what Envoy's configuration is made from, to take it up while Envoy runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

__all__ = ["follow"]

_POLL_S: Final = 0.5

log = structlog.get_logger()


async def follow(
    what: str,
    file: Callable[[], Path],
    take_up: Callable[[], Awaitable[bool]],
    cannot: tuple[type[Exception], ...],
) -> None:
    """Calls `take_up` twice a second, which says whether there was a change; ends only when cancelled.

    One that fails with `cannot` is logged, once for as long as it fails alike. `file` is for the log.
    """
    complaint = ""
    while True:
        try:
            if await take_up():
                log.info(f"{what} changed", file=str(file()))
            complaint = ""
        except cannot as error:
            if str(error) != complaint:
                complaint = str(error)
                log.error(f"{what} not taken up", file=str(file()), error=complaint)
        await asyncio.sleep(_POLL_S)

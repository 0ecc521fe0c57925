"""Processes of ours that nobody supervises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process

__all__ = ["kill_group"]


async def kill_group(process: Process) -> None:
    """Kills `process`, which leads a group of its own, with the group, and reaps it. Again: nothing."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    # Killed, or at its end: this takes no time, and a second cancel must not leave it unreaped.
    waiting = asyncio.ensure_future(process.wait())
    try:
        await asyncio.shield(waiting)
    except asyncio.CancelledError:
        await waiting
        raise

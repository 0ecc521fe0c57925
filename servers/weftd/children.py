"""What all who run a process of their own need."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from asyncio.subprocess import Process
from typing import Final

__all__ = ["RestartPause", "kill_group"]

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0


class RestartPause:
    """The back-off between the end of a process and its next start.

    One that ran for `stable_s` is started again at once: more than it takes to find that it froze.
    """

    def __init__(self, stable_s: float = 30.0) -> None:
        self._stable_s = stable_s
        self._pause_s = _FIRST_PAUSE_S
        self._since = math.inf

    def started(self) -> None:
        """It runs, and does its work, from now on."""
        self._since = time.monotonic()

    def ended(self) -> float:
        """The seconds to wait before its next start: twice as many each time, unless it ran for a while."""
        if time.monotonic() - self._since > self._stable_s:
            self._pause_s = _FIRST_PAUSE_S
        self._since = math.inf
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s


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

"""Lets whoever waits for an answer go first."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["give_way"]

_LOWEST = 19
_AUTOGROUP = Path("/proc/self/autogroup")


def give_way() -> None:
    """Gives this process, and those that it starts, the lowest priority for the processor.

    Linux may share the processor out between sessions before it looks at processes (autogroup in
    sched(7)): a process that leads a session of its own lowers that one too, or its niceness would count
    for nothing. Another's session is left alone: a terminal's other programs are in it.
    """
    os.nice(_LOWEST)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # not Linux, or switched off
            _AUTOGROUP.write_text(str(_LOWEST))

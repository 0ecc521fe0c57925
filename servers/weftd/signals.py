"""Programs that run until they are told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["until_signal"]


async def until_signal(work: Coroutine[Any, Any, object], stopped: Callable[[], object]) -> None:
    """Runs `work` until it ends, or SIGINT or SIGTERM cancels it: then its end, and `stopped` last.

    A second signal cuts that end short.
    """
    task = asyncio.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        stopped()

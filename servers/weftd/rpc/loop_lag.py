"""What an event loop has to do: how late it is while others hold it, and how many tasks it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge, Histogram

_PERIOD_S: Final = 0.1
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_LAG: Final = Histogram(
    "weft_loop_lag_seconds", "How late the event loop calls what is due.", buckets=_BUCKETS
)
_TASKS: Final = Gauge("weft_loop_tasks", "Tasks of the event loop that have not ended.")


def watch_loop() -> Callable[[], None]:
    """Takes a sample of the running loop ten times a second, to a millisecond; returns how to stop."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def sample(due: float) -> None:
        nonlocal timer
        now = time.monotonic()
        _LAG.observe(max(0.0, now - due))
        timer = loop.call_later(_PERIOD_S, sample, now + _PERIOD_S)

    timer = loop.call_later(_PERIOD_S, sample, time.monotonic() + _PERIOD_S)
    _TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))

    def stop() -> None:
        timer.cancel()

    return stop

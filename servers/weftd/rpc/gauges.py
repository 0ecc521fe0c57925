"""Gauges that are read when someone asks for the metrics: until then they cost nothing.

Names are of the code, never of a client. What is given must be quick and safe on any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge

_WAITING: Final = Gauge("weft_queue_waiting", "What waits in a queue.", ["queue"])
_USED: Final = Gauge("weft_slots_used", "How much of a limit is in use.", ["slots"])
_LOADED: Final = Gauge("weft_model_loaded", "1 where an optional model is set, else 0.", ["model"])


def show_waiting(queue: str, count: Callable[[], float]) -> None:
    """Shows how much waits in `queue`; a second one of that name takes the place of the first."""
    _WAITING.labels(queue).set_function(count)


def show_used(slots: str, count: Callable[[], float]) -> None:
    """Shows how many of these `slots` are taken; likewise."""
    _USED.labels(slots).set_function(count)


def show_loaded(model: str, is_loaded: bool) -> None:
    """Shows whether a model that may be left out is there."""
    _LOADED.labels(model).set(is_loaded)

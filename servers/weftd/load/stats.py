"""What a load run comes to: turns in, figures out. Times are seconds of `time.perf_counter`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["LATE_S", "Quantiles", "Summary", "Turn", "arrivals", "percentile", "summarise"]

LATE_S = 0.01
"""A turn that starts so long after its time is counted as late."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and what became of it.

    `intended_s` is when it should have started: in an open loop the schedule says so, else it is
    `started_s`. Latencies count from it, so that a server that stalls cannot hide the turns that
    had to wait (coordinated omission). `reason` is empty where the answer came whole.
    """

    intended_s: float
    started_s: float
    first_s: float | None
    ended_s: float
    events: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Summary:
    """`turns` were asked and `answered` whole; latencies are of those, and None where there are none.

    `qps` counts whole answers that came within the time measured, whenever they were asked.
    """

    seconds: float
    turns: int
    answered: int
    qps: float
    turn_ms: Quantiles | None
    first_token_ms: Quantiles | None
    events: int
    errors: dict[str, int]
    late: int


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least `share` (0 to 1) of all do not exceed: nearest rank."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def arrivals(began_s: float, rate: float, warm_up: int, counted: int) -> Iterator[float]:
    """When the turns of an open loop start: evenly, `rate` a second, the first that counts at `began_s`."""
    return (began_s + number / rate for number in range(-warm_up, counted))


def summarise(turns: Sequence[Turn], began_s: float, ended_s: float) -> Summary:
    """The figures of what was to start at or after `began_s`; the time measured ends at `ended_s`."""
    measured = [turn for turn in turns if turn.intended_s >= began_s]
    whole = [turn for turn in measured if not turn.reason]
    within = sum(not turn.reason and began_s <= turn.ended_s <= ended_s for turn in turns)
    seconds = max(0.0, ended_s - began_s)
    return Summary(
        seconds=seconds,
        turns=len(measured),
        answered=len(whole),
        qps=within / seconds if seconds else 0.0,
        turn_ms=_quantiles([turn.ended_s - turn.intended_s for turn in whole]),
        first_token_ms=_quantiles(
            [turn.first_s - turn.intended_s for turn in whole if turn.first_s is not None]
        ),
        events=sum(turn.events for turn in measured),
        errors=dict(Counter(turn.reason for turn in measured if turn.reason).most_common()),
        late=sum(turn.started_s - turn.intended_s > LATE_S for turn in measured),
    )


def _quantiles(seconds: list[float]) -> Quantiles | None:
    if not seconds:
        return None
    seconds.sort()
    p50, p95, p99 = (percentile(seconds, share) * 1e3 for share in (0.5, 0.95, 0.99))
    return Quantiles(p50, p95, p99)

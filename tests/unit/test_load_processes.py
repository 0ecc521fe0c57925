"""A load on several processes asks what one would, and is measured as one."""

from __future__ import annotations

from typing import Any

import pytest

from weftd.load.processes import merged, shares
from weftd.load.run import Measured, Plan
from weftd.load.stats import Turn, summarise
from weftd.load.target import Target


def plan(**more: Any) -> Plan:
    return Plan("grpc", Target("127.0.0.1:8080"), "secret", ("?",), **more)


def test_callers_and_requests_are_shared_out() -> None:
    parts = shares(plan(callers=10, requests=7), 3)
    assert [part.callers for part in parts] == [4, 3, 3]
    assert [part.requests for part in parts] == [3, 2, 2]
    assert all(part.rate is None for part in parts)


def test_a_rate_is_shared_out_evenly() -> None:
    assert [part.rate for part in shares(plan(rate=30), 3)] == [10, 10, 10]


@pytest.mark.parametrize("few", [{"callers": 2}, {"callers": 3, "requests": 2}, {"rate": 9, "requests": 2}])
def test_there_is_something_for_each_process(few: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="fewer processes"):
        shares(plan(**few), 3)


def test_percentiles_are_of_all_turns_together() -> None:
    def half(began_s: float, took_s: float) -> Measured:
        turns = [Turn(10 + step, 10 + step, None, 10 + step + took_s, 3) for step in range(5)]
        return Measured(turns, began_s, 20, not_started=1, cpu=took_s, left=1, stopped=False)

    whole = merged([half(10, 0.1), half(10, 0.9)])
    summary = summarise(whole.turns, whole.began_s, whole.ended_s)
    assert (summary.answered, summary.qps, whole.not_started, whole.left, whole.cpu) == (10, 1, 2, 2, 0.9)
    assert summary.turn_ms is not None
    assert (summary.turn_ms.p50, summary.turn_ms.p95) == (pytest.approx(100), pytest.approx(900))

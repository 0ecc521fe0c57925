"""The figures of `weft load`, and what is said of them."""

from __future__ import annotations

import json

import pytest

from weftd.load.report import as_json, as_text
from weftd.load.run import Measured, Plan
from weftd.load.stats import Quantiles, Turn, arrivals, percentile, summarise
from weftd.load.target import Target


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (1, 0.99, 1), (2, 0.5, 1), (4, 0.95, 4), (100, 0.5, 50), (100, 0.95, 95), (100, 0.99, 99)],
)
def test_percentile_is_a_value_that_was_measured(count: int, share: float, expected: int) -> None:
    assert percentile(range(1, count + 1), share) == expected


def test_arrivals_are_even_and_begin_with_the_warm_up() -> None:
    assert list(arrivals(100.0, 4.0, 2, 3)) == [99.5, 99.75, 100.0, 100.25, 100.5]


def turn(intended_s: float, ended_s: float, *, waited_s: float = 0, reason: str = "") -> Turn:
    first_s = None if reason else (intended_s + ended_s) / 2
    return Turn(intended_s, intended_s + waited_s, first_s, ended_s, 3, reason)


def test_latency_counts_from_when_a_turn_was_due() -> None:
    summary = summarise([turn(10, 10.4, waited_s=0.3)], 10, 11)
    assert summary.turn_ms is not None and summary.turn_ms.p50 == pytest.approx(400)
    assert summary.first_token_ms is not None and summary.first_token_ms.p99 == pytest.approx(200)
    assert summary.late == 1


def test_the_warm_up_does_not_count_and_failures_have_no_latency() -> None:
    turns = [
        turn(9.9, 10.1),  # began in the warm-up, ended after it: of the throughput only
        turn(10.0, 10.2),
        turn(10.5, 10.6, reason="OVERLOADED"),
        turn(10.6, 10.7, reason="OVERLOADED"),
        turn(10.7, 10.9, reason="cut off"),
        turn(10.8, 12.5),  # ended after the time measured
    ]
    summary = summarise(turns, 10, 12)
    assert (summary.turns, summary.answered, summary.events) == (5, 2, 15)
    assert summary.qps == 1.0
    assert summary.errors == {"OVERLOADED": 2, "cut off": 1}
    assert summary.turn_ms is not None
    assert (summary.turn_ms.p50, summary.turn_ms.p99) == (pytest.approx(200), pytest.approx(1700))


def test_nothing_measured_is_no_figure() -> None:
    summary = summarise([], 10, 10)
    assert (summary.turns, summary.qps, summary.turn_ms, summary.errors) == (0, 0.0, None, {})
    assert isinstance(summarise([turn(10, 11)], 10, 12).turn_ms, Quantiles)


def measured(cpu: float = 0.2, *, turns: list[Turn] | None = None, left: int = 0) -> Measured:
    return Measured(turns or [], 10, 12, not_started=7, cpu=cpu, left=left, stopped=False)


PLAN = Plan("grpc", Target("127.0.0.1:8080"), "secret", ("?",), rate=50)


def test_a_busy_loader_says_so() -> None:
    assert "The loader is busy" in as_text(PLAN, measured(0.81))
    assert as_json(PLAN, measured(0.81))["loader_busy"] is True
    assert "The loader is busy" not in as_text(PLAN, measured(0.79))


def test_the_report_names_errors_and_what_did_not_start_and_never_the_token() -> None:
    result = measured(turns=[turn(10, 11, reason="OVERLOADED")], left=2)
    text = as_text(PLAN, result)
    assert "1   OVERLOADED 1" in text
    assert "not started          7" in text
    assert "2 conversations" in text
    machine = json.loads(json.dumps(as_json(PLAN, result)))
    assert (machine["loop"], machine["errors"], machine["not_started"]) == ("open", {"OVERLOADED": 1}, 7)
    assert machine["turn_ms"] is None
    assert "secret" not in text + json.dumps(machine)

"""What a load run says of itself: lines for people, an object for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from weftd.load.run import MOST_IN_FLIGHT, Measured, Plan
from weftd.load.stats import LATE_S, Quantiles, Summary, summarise

__all__ = ["as_json", "as_text", "summary_of"]

BUSY: Final = 0.8
"""From this share of a core on the loader may be what is measured."""


def as_json(plan: Plan, measured: Measured) -> dict[str, Any]:
    """The fields of `Summary`, and what the run itself was."""
    return {
        "transport": plan.transport,
        "loop": "closed" if plan.rate is None else "open",
        "callers": plan.callers if plan.rate is None else None,
        "rate": plan.rate,
        **asdict(summary_of(measured)),
        "not_started": measured.not_started,
        "loader_cpu": measured.cpu,
        "loader_busy": measured.cpu > BUSY,
        "stopped": measured.stopped,
        "conversations_left": measured.left,
    }


def as_text(plan: Plan, measured: Measured) -> str:
    """A few lines; a warning where the figures may not be the mesh's."""
    summary = summary_of(measured)
    load = f"{plan.callers} callers" if plan.rate is None else f"{plan.rate:g} turns per second"
    errors = ", ".join(f"{reason} {count:,}" for reason, count in summary.errors.items()) or "none"
    lines = [
        f"{plan.transport} at {plan.target.address}, {load}, {summary.seconds:.1f} s"
        + (" (stopped)" if measured.stopped else ""),
        "",
        f"{'ms':<12}{'p50':>10}{'p95':>10}{'p99':>10}",
        _row("first token", summary.first_token_ms),
        _row("whole turn", summary.turn_ms),
        "",
        f"{'answers':<12}{summary.answered:>10,}   {summary.qps:,.1f} per second",
        f"{'events':<12}{summary.events:>10,}",
        f"{'errors':<12}{sum(summary.errors.values()):>10,}   {errors}",
    ]
    if plan.rate is not None:
        lines += [
            f"{'late':<12}{summary.late:>10,}   began over {LATE_S * 1e3:.0f} ms after they were due",
            f"{'not started':<12}{measured.not_started:>10,}   no room among {MOST_IN_FLIGHT:,} at once",
        ]
    lines.append(f"{'loader':<12}{measured.cpu:>10.0%}   of a core")
    if measured.cpu > BUSY:
        lines += [
            "",
            "The loader is busy: it may be slower than the mesh. Take less load, or more --processes.",
        ]
    if measured.left:
        lines += ["", f"{measured.left:,} conversations (load-…) could not be deleted."]
    return "\n".join(lines)


def summary_of(measured: Measured) -> Summary:
    """The figures of a run."""
    return summarise(measured.turns, measured.began_s, measured.ended_s)


def _row(name: str, quantiles: Quantiles | None) -> str:
    values = (quantiles.p50, quantiles.p95, quantiles.p99) if quantiles else ()
    return f"{name:<12}" + ("".join(f"{value:>10,.1f}" for value in values) or f"{'–':>10}")

"""What the job process does, for Prometheus. Labels are names of the code and of error reasons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

_OPEN: Final = Gauge("weft_jobs_open", "Jobs that are not finished.", ["kind"])
_FAILED: Final = Counter("weft_jobs_failed_total", "Index jobs that were given up.", ["reason"])
_SECONDS: Final = Histogram("weft_job_step_seconds", "Duration of steps.", ["step"], buckets=_BUCKETS)
_STEPS_FAILED: Final = Counter(
    "weft_job_steps_failed_total", "Steps that failed, also those that are tried again.", ["step"]
)


def are_open(*, index: int, purge: int) -> None:
    """So many jobs are not finished, in all job processes."""
    _OPEN.labels("index").set(index)
    _OPEN.labels("purge").set(purge)


def given_up(reason: str) -> None:
    """An index job failed; `reason` is an error reason's name."""
    _FAILED.labels(reason).inc()


@contextmanager
def measured(step: str) -> Iterator[None]:
    """One attempt of a step. What ends it because the process stops is no failure."""
    with _SECONDS.labels(step).time():
        try:
            yield
        except Exception:
            _STEPS_FAILED.labels(step).inc()
            raise

"""Rate, errors and duration of every call, for Prometheus.

Labels are method names, transports and codes: all of fixed sets.
"""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_GAP_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_BY: Final = ("rpc", "transport")
_SECONDS = Histogram("weft_rpc_seconds", "Duration of calls.", _BY, buckets=_BUCKETS)
_FIRST = Histogram(
    "weft_rpc_first_message_seconds", "Time to a stream's first message.", _BY, buckets=_BUCKETS
)
_GAP = Histogram(
    "weft_rpc_message_gap_seconds", "Time between a stream's messages.", _BY, buckets=_GAP_BUCKETS
)
_ENDED = Counter("weft_rpc_ended_total", "Calls that have ended, by status code.", (*_BY, "code"))
_OPEN = Gauge("weft_rpc_open", "Calls that are running.", ["rpc"])


class MethodMetrics:
    """The metrics of one method; their labels are looked up once, not per call."""

    __slots__ = ("_method", "_open", "_over", "_streams")

    def __init__(self, method: str, *, streams: bool) -> None:
        self._method = method
        self._streams = streams
        self._open = _OPEN.labels(method)
        self._over: dict[str, TransportMetrics] = {}

    def began(self) -> float:
        """Counts a call; returns its start in seconds of `time.perf_counter()`."""
        self._open.inc()
        return time.perf_counter()

    def over(self, transport: str) -> TransportMetrics:
        """What is measured of the calls that came over this transport."""
        found = self._over.get(transport)
        if found is None:
            found = self._over[transport] = TransportMetrics(
                self._method, transport, self._open, self._streams
            )
        return found


class TransportMetrics:
    """The metrics of one method over one transport."""

    __slots__ = ("_ended", "_first", "_gap", "_method", "_open", "_seconds", "transport")

    def __init__(self, method: str, transport: str, running: Gauge, streams: bool) -> None:
        self.transport = transport
        self._method = method
        self._open = running
        self._seconds = _SECONDS.labels(method, transport)
        self._ended: dict[str, Counter] = {}
        self._first = _FIRST.labels(method, transport) if streams else None
        self._gap = _GAP.labels(method, transport) if streams else None

    def ended(self, started: float, code: str) -> float:
        """Counts the end; returns the call's seconds."""
        took = time.perf_counter() - started
        self._open.dec()
        self._seconds.observe(took)
        if code not in self._ended:
            self._ended[code] = _ENDED.labels(self._method, self.transport, code)
        self._ended[code].inc()
        return took

    def wrote(self, since: float, *, first: bool) -> float:
        """Observes one message of a stream, `since` its start or the message before; returns now."""
        now = time.perf_counter()
        histogram = self._first if first else self._gap
        if histogram is not None:
            histogram.observe(now - since)
        return now

"""Triton's own metrics on the page of `weft triton`, beside those of its guardian and canary."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable
from typing import Final

import structlog
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from weftd.envoy.config import Endpoint
from weftd.inference.triton.client import Served
from weftd.triton.values import PROOF_MODEL

__all__ = ["MENDED", "RESTARTED", "show_served", "show_triton"]

log = structlog.get_logger()

MENDED: Final = Counter(
    "weft_triton_mended_total", "Models that were loaded again, for a process of theirs died.", ["model"]
)
RESTARTED: Final = Counter("weft_triton_restarted_total", "Times that Triton ended and was started again.")
_SERVED: Final = Gauge(
    "weft_triton_served_version", "The version that answers new calls; 0: none.", ["model"]
)
_LIMIT_S: Final = 2.0


def show_served(index: Iterable[Served]) -> None:
    """Shows which version of each model answers."""
    versions: dict[str, int] = {}
    for each in index:
        if each.model == PROOF_MODEL:  # it has done its work, and 0 would be an alert
            continue
        ready = int(each.version) if each.state == "READY" else 0
        versions[each.model] = max(ready, versions.get(each.model, 0))
    _SERVED.clear()  # of models that are gone
    for model, version in versions.items():
        _SERVED.labels(model).set(version)


def show_triton(address: Endpoint) -> None:
    """Adds what Triton says at `address` to the page of this process, each time somebody asks for that."""
    REGISTRY.register(_Triton(f"http://{address}/metrics"))


class _Triton(Collector):
    def __init__(self, url: str) -> None:
        self._url = url

    def describe(self) -> Iterable[Metric]:
        """Nothing: without it the registry would ask Triton for its metrics now."""
        return ()

    def collect(self) -> Iterable[Metric]:
        try:
            with urllib.request.urlopen(self._url, timeout=_LIMIT_S) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
        except (OSError, ValueError) as error:
            log.warning("triton_metrics_missing", message=str(error))
            return ()
        for family in families:
            if family.type == "counter":  # else its name ends in "_total", as Triton's do not
                family.type = "unknown"
                family.samples = [
                    each._replace(name=each.name.removesuffix("_total")) for each in family.samples
                ]
        return families

"""Which version of each model Triton serves, now and as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Final

from weft.v1.models_pb2 import WatchModelsEvent
from weftd.errors import WeftError
from weftd.inference.triton.client import Served, Triton
from weftd.models.versions.store import is_check
from weftd.rpc.drain import Drain

__all__ = ["served_versions", "watch"]

_PERIOD_S: Final = 0.25


def served_versions(index: Sequence[Served]) -> dict[str, int]:
    """The version that answers new calls, by model; what is only being checked is left out."""
    served: dict[str, int] = {}
    for each in index:
        if each.state == "READY" and not is_check(each.model):
            served[each.model] = max(served.get(each.model, 0), int(each.version))
    return served


async def watch(triton: Triton, drain: Drain) -> AsyncGenerator[WatchModelsEvent, None]:
    """A `served` event for each model as it is now, then one for each change; `seq` is left to the caller.

    Unavailable where Triton does not answer at first; later that is told of each model as `gone`. Unavailable
    DRAINING where the process stops.
    """
    known: dict[str, int] = {}
    served = served_versions(index := await triton.index())
    why = ""
    while True:
        for model in sorted(known.keys() - served.keys()):
            said = why or next((each.reason for each in index if each.model == model and each.reason), "")
            yield WatchModelsEvent(type="gone", model=model, reason=(said or "it was unloaded")[:1000])
        for model, version in sorted(served.items()):
            if known.get(model) != version:
                yield WatchModelsEvent(type="served", model=model, version=version)
        known = served
        with suppress(TimeoutError):
            await asyncio.wait_for(drain.started.wait(), _PERIOD_S)
        drain.refuse_new()
        try:
            served, why = served_versions(index := await triton.index()), ""
        except WeftError as error:
            served, index, why = {}, [], error.message

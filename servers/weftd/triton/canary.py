"""Finds what is dead in a running Triton, and mends it.

A stub that died is invisible to Triton's health and never replaced: each call that meets it fails after a
second. It is seen twice over: as a process that is missing, and as a call that says so. The model is loaded
again beside the dead one, which Triton does for a version whose files are newer than what it loaded: the
other instances serve on, and nobody sees the model gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_BROKEN, ERROR_REASON_MODEL_REFUSED
from weftd.errors import ResourceExhausted, Unavailable, WeftError
from weftd.inference.triton.client import Answer, Served, Triton
from weftd.triton.metrics import MENDED, show_served
from weftd.triton.process import Stub, TritonProcess

__all__ = ["Canary", "ask"]

log = structlog.get_logger()

_LOOK_EVERY_S: Final = 0.5
_CALL_EVERY_S: Final = 5.0
_CALL_LIMIT_S: Final = 10.0
_BACKOFF_MAX_S: Final = 60.0
# As good as another for a model that embeds, and a conversation for one that writes.
_TEXT: Final = '[{"role": "user", "content": "canary"}]'
_DEAD: Final = "is not healthy"


async def ask(triton: Triton, model: str) -> Answer | None:
    """One call with made-up input; None where the model lives and has no answer to that (its queue is full).

    The WeftError of the call where it failed, Unavailable where the answer is no value: empty, or not
    finite.
    """
    config = await triton.config(model)
    batch = [1] if config.max_batch_size else []
    inputs = {
        each.name: _made_up(each.data_type, [*batch, *(max(size, 1) for size in each.dims)])
        for each in config.input
        if not each.optional
    }
    try:
        if not config.model_transaction_policy.decoupled:
            answer = await triton.infer(model, inputs)
        else:
            async with aclosing(triton.stream(model, inputs)) as answers:
                answer = await anext(answers)
    except (ResourceExhausted, StopAsyncIteration):
        return None
    for name, values in answer.outputs.items():
        if not values.size or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise Unavailable(
                ERROR_REASON_MODEL_BROKEN, f"The model {model} answers with no value for {name}."
            )
    return answer


class Canary:
    """Watches one Triton. `run` it as long as that one runs."""

    def __init__(self, process: TritonProcess) -> None:
        self._process = process
        self._triton = process.client
        self._suspects: set[str] = set()
        self._not_before: dict[str, float] = {}
        self._tries: Counter[str] = Counter()

    async def run(self) -> None:
        """Looks for missing stubs each half second, and calls every model each five. Ends when cancelled."""
        call_at = 0.0
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if not self._process.is_up:
                continue
            try:
                index = await self._triton.index()
                show_served(index)
                stubs = await asyncio.to_thread(self._process.stubs)
                suspects = await self._suspicious(index, stubs)
                for model in suspects & self._suspects:
                    await self._mend(model, index)
                self._suspects = suspects
                if not suspects and time.monotonic() > call_at:
                    await asyncio.gather(*(self._call(model, index) for model in _settled(index)))
                    await asyncio.to_thread(self._process.sweep, stubs)
                    call_at = time.monotonic() + _CALL_EVERY_S
            except WeftError as error:
                log.warning("canary_unanswered", message=error.detail or error.message)

    async def _suspicious(self, index: list[Served], stubs: Iterable[Stub]) -> set[str]:
        """Models that should be served and are not, or lack a process; none that is being loaded."""
        alive = Counter((stub.model, stub.version) for stub in stubs)
        found = set()
        for model, versions in _settled(index).items():
            groups = (await self._triton.config(model)).instance_group
            count = sum(group.count * max(1, len(group.gpus)) for group in groups)
            if any(alive[model, version] < count for version in versions):
                found.add(model)
        known = {each.model for each in index if each.state in ("READY", "LOADING", "UNLOADING")}
        return found | {model for model in self._process.config.models if model not in known}

    async def _call(self, model: str, index: list[Served]) -> None:
        try:
            async with asyncio.timeout(_CALL_LIMIT_S):
                await ask(self._triton, model)
        except TimeoutError:
            log.warning("canary_slow", model=model, limit_s=_CALL_LIMIT_S)
        except WeftError as error:
            if _DEAD in error.detail:
                await self._mend(model, index)
            elif error.reason != ERROR_REASON_MODEL_REFUSED:  # made-up input need not be to its taste
                said = error.detail or error.message
                log.warning("canary_failed", model=model, message=said)

    async def _mend(self, model: str, index: list[Served]) -> None:
        if time.monotonic() < self._not_before.get(model, 0):
            return
        started = time.monotonic()
        log.warning("model_dead", model=model)
        for each in index:
            if each.model == model and each.state == "READY":
                await asyncio.to_thread(_touch, self._process.config.repository / model / each.version)
        try:
            await self._triton.load(model)
        except WeftError as error:
            self._tries[model] += 1
            wait_s = min(2.0 ** self._tries[model], _BACKOFF_MAX_S)
            self._not_before[model] = time.monotonic() + wait_s
            said = error.detail or error.message
            log.error("model_not_mended", model=model, again_in_s=wait_s, message=said)
            return
        self._tries[model] = 0
        MENDED.labels(model).inc()
        log.warning("model_mended", model=model, after_s=round(time.monotonic() - started, 2))


def _settled(index: list[Served]) -> dict[str, list[str]]:
    """The versions served of each model, without the models of which one is being loaded or unloaded."""
    moving = {each.model for each in index if each.state in ("LOADING", "UNLOADING")}
    found: dict[str, list[str]] = {}
    for each in index:
        if each.state == "READY" and each.model not in moving:
            found.setdefault(each.model, []).append(each.version)
    return found


def _touch(version: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(version / "model.py")


def _made_up(data_type: int, shape: list[int]) -> Any:
    name = model_config_pb2.DataType.Name(data_type).removeprefix("TYPE_")
    if name == "STRING":
        return np.full(shape, _TEXT, object)
    return np.ones(shape, triton_to_np_dtype(name))

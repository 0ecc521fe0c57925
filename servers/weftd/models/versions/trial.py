"""Tries a version out in the Triton that is to serve it, under another name."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd.errors import FailedPrecondition, Unavailable, WeftError
from weftd.inference.triton.client import Answer, Triton
from weftd.models.versions.canary import canary_inputs, check_outputs
from weftd.models.versions.model_config import CHECK_FILE, Config, checking, text
from weftd.models.versions.refusal import VersionRefused
from weftd.models.versions.store import CONFIG_FILE, VersionStore
from weftd.rpc.incoming import on_thread

__all__ = ["Trial", "TrialLimits"]

_GUARD: Final = Path(__file__).with_name("guarded_model.py")
_MARK: Final = re.compile(r"weft-check: ([^\n]*)")
# The embedder's: what was indexed with another one cannot be found any more.
_IDENTITY: Final = "MODEL_ID"
# Beside the guard's own limits, for a Triton that is busy.
_SLACK_S: Final = 30.0
_GONE_LIMIT_S: Final = 15.0
_PAUSE_S: Final = 0.05

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """How long a version may take to load, and for the first call, in seconds."""

    load_s: float = 300.0
    call_s: float = 60.0


class Trial:
    """Tries versions that lie in the store. What it loads it unloads."""

    def __init__(self, triton: Triton, store: VersionStore, limits: TrialLimits) -> None:
        self._triton = triton
        self._store = store
        self._limits = limits

    async def run(
        self, name: str, version: int, config: Config, given: Mapping[str, Any], model: str
    ) -> None:
        """Loads `version` of `name` with `config` and calls it; VersionRefused where either does not work.

        `given` are inputs, see `canary_inputs`. Where the answer has a MODEL_ID it must be that of `model`,
        which is served. On return `name` is no longer loaded.
        """
        inputs = canary_inputs(config, given)
        guarded = checking(config, version, self._limits.load_s, self._limits.call_s)
        guard = await on_thread(_GUARD.read_bytes)
        await on_thread(self._store.write, name, guard, str(version), CHECK_FILE)
        await on_thread(self._store.write, name, text(guarded), CONFIG_FILE)
        try:
            async with asyncio.timeout(self._limits.load_s + _SLACK_S):
                await _tried(self._triton.load(name))
            async with asyncio.timeout(self._limits.call_s + _SLACK_S):
                answer = await _tried(self._call(name, config, inputs))
        except TimeoutError:
            raise VersionRefused("it did not load and answer in time") from None
        finally:
            await self.clear(name)
        if _IDENTITY in answer.outputs:
            await self._check_identity(model, inputs, answer)
        await on_thread(self._store.remove, name, str(version), CHECK_FILE)

    async def clear(self, name: str) -> None:
        """Unloads `name` and waits until it is gone; goes through with it when cancelled."""
        clearing = asyncio.ensure_future(self._clear(name))
        try:
            await asyncio.shield(clearing)
        except asyncio.CancelledError:
            await asyncio.wait([clearing])
            raise

    async def _clear(self, name: str) -> None:
        gone_at = time.monotonic() + _GONE_LIMIT_S
        try:
            await self._triton.unload(name)
            while any(
                each.model == name and each.state not in ("", "UNAVAILABLE")
                for each in await self._triton.index()
            ):
                if time.monotonic() > gone_at:
                    log.warning("model of a check not unloaded", model=name)
                    return
                await asyncio.sleep(_PAUSE_S)
        except WeftError as error:
            log.warning("model of a check not unloaded", model=name, error=error.message)

    async def _call(self, name: str, config: Config, inputs: Mapping[str, Any]) -> Answer:
        """The answer, or the first of a stream, with each of its answers checked."""
        if not config.model_transaction_policy.decoupled:
            answer = await self._triton.infer(name, inputs)
            check_outputs(config, answer.outputs)
            return answer
        first: Answer | None = None
        async with aclosing(self._triton.stream(name, inputs)) as answers:
            async for answer in answers:
                check_outputs(config, answer.outputs)
                first = first or answer
        if first is None:
            raise VersionRefused("its stream ended without an answer")
        return first

    async def _check_identity(self, model: str, inputs: Mapping[str, Any], answer: Answer) -> None:
        try:
            before = (await self._triton.infer(model, inputs)).outputs[_IDENTITY]
        except (WeftError, KeyError):
            return  # none is served that it could differ from
        now = answer.outputs[_IDENTITY]
        if now.tolist() != before.tolist():
            was, is_now = (bytes(each.flat[0]).decode(errors="replace")[:80] for each in (before, now))
            raise VersionRefused(
                f"it embeds as {is_now}, and what is indexed was embedded as {was}: set WEFT_EMBEDDER for "
                "another model, and index again"
            )


async def _tried(call: Any) -> Any:
    """VersionRefused for what Triton says of the version; other errors as they are."""
    try:
        return await call
    except (FailedPrecondition, Unavailable) as error:
        if error.reason == ERROR_REASON_BACKEND_UNAVAILABLE:
            raise
        raise VersionRefused(_why(error)) from error


def _why(error: WeftError) -> str:
    said = error.detail or error.message
    marked = _MARK.search(said)
    return marked[1].rstrip("; ") if marked else " ".join(said.split())[:300]

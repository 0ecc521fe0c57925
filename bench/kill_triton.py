"""Triton's stubs and its server killed under load.

    .venv/bin/python -m bench.kill_triton [KILLS]

`weft triton` with the embedder (two stubs) and a tiny language model (one stub, streams), under 8 callers
that embed and 2 that stream. Each in turn is killed with -9, KILLS times (20): a stub of the embedder, the
stub of the language model, the server. Every call that fails must say that a retry helps; none may hang; at
the end nothing may run, or be left in /dev/shm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from bench.setting import table
from tests.servers.mesh import free_port, mesh_environment
from tests.servers.tiny_llm import write_tiny_llm
from weftd.errors import WeftError
from weftd.inference.triton.client import Triton
from weftd.triton.process import shared_memory_prefix

_VICTIMS = ("stub of the embedder", "stub of the language model", "server")
_HANG_S = 12.0
_CALLERS, _STREAMS = 10, 2
_QUESTION = json.dumps([{"role": "user", "content": "What is the notice period?"}])


@dataclass(frozen=True, slots=True)
class Call:
    """When it began and ended, in seconds of `time.monotonic()`, and how: "" where it was answered."""

    caller: int
    model: str
    began: float
    ended: float
    error: str


@dataclass
class Kill:
    """What one kill did: seconds until each call was answered again, and the calls that failed."""

    back_s: float
    failed: list[Call]


@dataclass
class Load:
    """Callers that go on until they are cancelled, and all their calls."""

    triton: Triton
    calls: list[Call] = field(default_factory=list)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for caller in range(_CALLERS):
                model, call = ("llm", self._stream) if caller < _STREAMS else ("embedder", self._embed)
                group.create_task(self._again(caller, model, call))

    async def _again(self, caller: int, model: str, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            began, error = time.monotonic(), ""
            try:
                async with asyncio.timeout(_HANG_S):
                    await call()
            except TimeoutError:
                error = "hung"
            except WeftError as raised:
                error = "retry" if raised.retry_after_s else f"no retry hint: {raised.message}"
            self.calls.append(Call(caller, model, began, time.monotonic(), error))
            await asyncio.sleep(0.02)

    async def _embed(self) -> None:
        await self.triton.infer("embedder", {"TEXT": np.array([["What is the notice period?"]], object)})

    async def _stream(self) -> None:
        inputs = {"MESSAGES": np.array([_QUESTION], object), "MAX_TOKENS": np.array([40], np.int32)}
        async with aclosing(self.triton.stream("llm", inputs)) as answers:
            async for _ in answers:
                pass

    async def well_again(self, since: float, limit_s: float = 60) -> Kill:
        """Once each caller was answered three times in a row, all begun after `since`."""
        while time.monotonic() - since < limit_s:
            await asyncio.sleep(0.1)
            recent: dict[int, list[Call]] = {caller: [] for caller in range(_CALLERS)}
            for each in self.calls:
                if each.ended > since:
                    recent[each.caller].append(each)
            if all(len(each) > 3 and not any(call.error for call in each[-3:]) for each in recent.values()):
                return _account([call for each in recent.values() for call in each], since)
        raise RuntimeError(f"not back after {limit_s:.0f} s")


def _account(calls: list[Call], since: float) -> Kill:
    """Back is when a call of each model was answered that began after the last one that was not."""
    failed = [each for each in calls if each.error]
    last = max((each.began for each in failed), default=since)
    later = [each for each in calls if not each.error and each.began >= last]
    answered = [min(each.ended for each in later if each.model == model) for model in ("embedder", "llm")]
    return Kill(max(answered) - since if failed else 0.0, failed)


def _server(program: subprocess.Popen[bytes]) -> psutil.Process:
    for each in psutil.Process(program.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if each.name() == "tritonserver":
                return each
    raise RuntimeError("there is no server")


def _stub(program: subprocess.Popen[bytes], model: str) -> psutil.Process:
    for each in _server(program).children():
        with contextlib.suppress(psutil.Error):
            if f"/{model}/" in " ".join(each.cmdline()):
                return each
    raise RuntimeError(f"no stub runs {model}")


async def _load_time(triton: Triton, version: Path) -> float:
    """How long a model itself needs to be read: again, beside the one that serves."""
    (version / "model.py").touch()
    started = time.monotonic()
    await triton.load(version.parent.name)
    return time.monotonic() - started


async def measure(
    program: subprocess.Popen[bytes], address: str, repository: Path, kills: int
) -> dict[str, list[Kill]]:
    """The kills of each victim."""
    found: dict[str, list[Kill]] = {victim: [] for victim in _VICTIMS}
    triton = Triton(address)
    load = Load(triton)
    while not await triton.is_ready("llm"):  # noqa: ASYNC110 - it is another program
        await asyncio.sleep(0.1)
    loads = {model: await _load_time(triton, repository / model / "1") for model in ("embedder", "llm")}
    print("own load time:", ", ".join(f"{model} {seconds:.1f} s" for model, seconds in loads.items()))
    running = asyncio.create_task(load.run())
    await load.well_again(time.monotonic())
    for _ in range(kills):
        for victim, model in zip(_VICTIMS, ("embedder", "llm", ""), strict=True):
            process = _stub(program, model) if model else _server(program)
            killed = time.monotonic()
            process.kill()
            found[victim].append(await load.well_again(killed))
            print(f"{victim}: back after {found[victim][-1].back_s:.1f} s", file=sys.stderr)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await triton.close()
    print(f"calls: {len(load.calls)}, failed: {sum(bool(each.error) for each in load.calls)}")
    return found


def run(directory: Path, kills: int) -> dict[str, list[Kill]]:
    """Starts `weft triton`, kills, stops, and says what is left."""
    address = f"127.0.0.1:{free_port()}"
    more = {"WEFT_TRITON_URL": f"grpc://{address}", "WEFT_LLM": str(write_tiny_llm(directory / "tiny"))}
    environment = mesh_environment(directory / "data", free_port(), more)
    with (directory / "triton.log").open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-m", "weftd", "triton"], env=environment, stdout=log, stderr=log
        )
    try:
        repository = directory / "data" / "triton" / "models"
        found = asyncio.run(measure(program, address, repository, kills))
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(30)
    left = [*Path("/dev/shm").glob(f"{shared_memory_prefix(directory / 'data' / 'triton')}*")]
    print(f"left in /dev/shm: {len(left)}; processes: {sum(map(_names(directory), psutil.process_iter()))}")
    return found


def _names(directory: Path) -> Callable[[psutil.Process], bool]:
    def names(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return any(str(directory) in part for part in process.cmdline())
        return False

    return names


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory(prefix="weft-kill-triton-") as directory:
        found = run(Path(directory), kills)
    rows = []
    for victim, each in found.items():
        failed = [call for kill in each for call in kill.failed]
        rows.append(
            (
                victim,
                str(len(each)),
                f"{sorted(kill.back_s for kill in each)[len(each) // 2]:.1f} s",
                f"{max(kill.back_s for kill in each):.1f} s",
                str(len(failed)),
                str(sum(call.error != "retry" for call in failed)),
                f"{max((call.ended - call.began for call in failed), default=0):.1f} s",
            )
        )
    print(
        table(("killed", "times", "back, median", "worst", "failed", "without hint or hung", "longest"), rows)
    )


if __name__ == "__main__":
    main()

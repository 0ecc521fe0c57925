"""Versions published in a row under open streams and calls: does any fail, break off, or mix two versions?

    python -m bench.publish

Two models without torch, whose answers are a function of their version's files: one that answers calls, 50 a
second, and a decoupled one, of which 32 streams are open at any time. 100 versions of each are published over
ModelService into one real Triton, one after the other, the two models side by side.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import structlog

from tests.servers.model_versions import Versions, archive, letters, number, serving, write_models
from tests.servers.triton import RunningTriton, running_triton
from weftd.errors import WeftError

VERSIONS: Final = 100
STREAMS: Final = 32
CALLS_PER_S: Final = 50
ANSWERS: Final = 60
PAUSE_MS: Final = 50

_BAD: Final = ("calls failed", "streams cut", "streams short", "streams mixed", "wrong version")


class Load:
    """Streams and calls, and what came of them. Version N of a model has the code N."""

    def __init__(self, versions: Versions) -> None:
        self._triton = versions.triton
        self.seen: Counter[str] = Counter()
        self.spans: set[int] = set()
        self.ended = asyncio.Event()
        self.open = 0

    async def stream(self) -> None:
        """One after the other, until the end; the last one is read to its end."""
        inputs = {"N": np.array([ANSWERS], np.int32), "PAUSE_MS": np.array([PAUSE_MS], np.float32)}
        while not self.ended.is_set():
            said: list[tuple[int, int]] = []
            self.open += 1
            try:
                async for answer in self._triton.stream("letters", inputs):
                    said += [(int(answer.outputs["CODE"][0]), int(answer.version))]
            except WeftError as error:
                self.seen["streams cut"] += 1
                print("cut:", error.message, error.metadata)
            self.open -= 1
            self.seen["streams"] += 1
            self.seen["streams short"] += len(said) != ANSWERS
            self.seen["streams mixed"] += len(set(said)) != 1
            self.seen["wrong version"] += any(code != version for code, version in said)

    async def calls(self) -> None:
        """At a fixed rate, answered or not."""
        began_s, running = time.perf_counter(), set[asyncio.Task[None]]()
        made = 0
        while not self.ended.is_set():
            made += 1
            running.add(task := asyncio.create_task(self._call()))
            task.add_done_callback(running.discard)
            await asyncio.sleep(max(0, began_s + made / CALLS_PER_S - time.perf_counter()))
        await asyncio.gather(*running)

    async def _call(self) -> None:
        self.seen["calls"] += 1
        try:
            answer = await self._triton.infer("number", {"N": np.array([1], np.int32)})
        except WeftError as error:
            self.seen["calls failed"] += 1
            print("failed:", error.message, error.metadata)
            return
        self.spans.add(int(answer.version))
        self.seen["wrong version"] += int(answer.outputs["CODE"][0]) != int(answer.version)


async def publish(versions: Versions, model: str, took_s: list[float]) -> None:
    """VERSIONS of a model, and that each answers the next call."""
    code = number if model == "number" else letters
    for version in range(2, VERSIONS + 2):
        began_s = time.perf_counter()
        done = await versions.publish(model, archive({"model.py": code(version)}))
        took_s.append(time.perf_counter() - began_s)
        assert done.version == version, done
        if model == "number":
            assert await versions.called() == (version, version)


async def measure(server: RunningTriton, directory: Path) -> int:
    async with serving(server, directory) as versions:
        load, took_s = Load(versions), list[float]()
        tasks = [asyncio.create_task(load.stream()) for _ in range(STREAMS)]
        tasks.append(asyncio.create_task(load.calls()))
        began_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for model in ("number", "letters"):
                    group.create_task(publish(versions, model, took_s))
        finally:
            load.ended.set()
            await asyncio.gather(*tasks)
        seen, spent_s = load.seen, time.perf_counter() - began_s
        print(f"{len(took_s)} versions in {spent_s:.0f} s, {median(took_s):.2f} s each (p50)")
        print(f"{seen['calls']} calls, answered by {len(load.spans)} versions; {seen['streams']} streams")
        for name in _BAD:
            print(f"{name:15} {seen[name]}")
        print(f"processes left  {await asyncio.to_thread(_processes_left, server)} of 2 models")
        return sum(seen[name] for name in _BAD)


def _processes_left(server: RunningTriton) -> int:
    """Of the two models; those of old versions end a second after their last stream."""
    give_up_at = time.monotonic() + 10
    while True:
        left = len(server.stubs("number")) + len(server.stubs("letters"))
        if left == 2 or time.monotonic() > give_up_at:
            return left
        time.sleep(0.1)


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        with running_triton(write_models(directory / "source"), directory / "triton") as server:
            raise SystemExit(1 if asyncio.run(measure(server, directory)) else 0)


if __name__ == "__main__":
    main()

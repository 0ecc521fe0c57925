"""Embedding 1,000 questions from 32 callers: in process and on Triton, batched and one by one.

    .venv/bin/python -m bench.embedding QUESTIONS.json …

The files are lists of objects with a `question`, or with `origin` and `similar`. Each caller asks for one
question after the other, with two threads or Triton instances for all of them; the four conditions take
turns. Processor time is that of the callers and of Triton together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil

from bench.setting import spread, table
from tests.servers.encoders import serving
from tests.servers.triton import RunningTriton
from weftd.inference.onnx_embedder import open_embedder
from weftd.inference.port import Embedder
from weftd.inference.triton.client import Triton
from weftd.inference.triton.embedder import TritonEmbedder

TEXTS = 1_000
CALLERS = 32
THREADS = 2
BATCH = 10
ROUNDS = 5
KEYS = ("question", "origin", "similar")


def questions(files: Sequence[str]) -> list[str]:
    found = [
        each[key]
        for file in files
        for each in json.loads(Path(file).read_text("utf-8"))
        for key in KEYS
        if each.get(key)
    ]
    if len(found) < TEXTS:
        raise SystemExit(f"{len(found)} questions in those files: name some with {TEXTS}.")
    return found[:TEXTS]


async def ask_all(embedder: Embedder, texts: Sequence[str]) -> float:
    """Texts per second."""
    left = iter(texts)

    async def caller() -> None:
        for text in left:
            await embedder.embed([text])

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    return len(texts) / (time.perf_counter() - started)


def processor_s(triton: RunningTriton | None) -> float:
    """Of this process and of a Triton's, so far."""
    watched = [psutil.Process()]
    if triton is not None:
        watched += [triton.process, *triton.stubs()]
    times = [process.cpu_times() for process in watched]
    return sum(each.user + each.system for each in times)


@contextlib.asynccontextmanager
async def on_triton(triton: RunningTriton) -> AsyncIterator[Embedder]:
    client = Triton(triton.address)
    try:
        yield await TritonEmbedder.connect(client, None)
    finally:
        await client.close()


async def measure(texts: Sequence[str], directory: Path) -> None:
    cache = directory / "models"
    with (
        serving("embedder", None, directory / "batched", BATCH) as batched,
        serving("embedder", None, directory / "single", 1) as single,
    ):
        async with on_triton(batched) as triton_batched, on_triton(single) as triton_single:
            conditions: dict[str, tuple[Embedder, RunningTriton | None]] = {
                "in process, one by one": (open_embedder(None, cache, THREADS, batch_size=1), None),
                f"in process, batches of {BATCH}": (
                    open_embedder(None, cache, THREADS, batch_size=BATCH),
                    None,
                ),
                "Triton, one by one": (triton_single, single),
                f"Triton, batches of {BATCH}": (triton_batched, batched),
            }
            speeds: dict[str, list[float]] = {name: [] for name in conditions}
            costs: dict[str, list[float]] = {name: [] for name in conditions}
            for number in range(ROUNDS + 1):
                for name, (embedder, triton) in conditions.items():
                    before = processor_s(triton)
                    speed = await ask_all(embedder, texts)
                    if number:  # the first round warms up
                        speeds[name].append(speed)
                        costs[name].append((processor_s(triton) - before) / len(texts) * 1_000)
    single_name, batched_name, triton_single_name, triton_name = conditions
    rows = [(name, spread(speeds[name], ".0f"), spread(costs[name])) for name in conditions]
    table(("condition", "texts per second", "processor time of a text, ms"), rows)
    pairs = ((batched_name, single_name), (triton_name, triton_single_name), (triton_name, batched_name))
    table(
        ("texts per second", "beside", "ratio"),
        [(name, other, spread(ratios(speeds, name, other))) for name, other in pairs],
    )
    print(f"\nmedian length: {statistics.median(map(len, texts)):.0f} characters")


def ratios(speeds: dict[str, list[float]], name: str, other: str) -> list[float]:
    """Round by round."""
    return [mine / its for mine, its in zip(speeds[name], speeds[other], strict=True)]


def main() -> None:
    texts = questions(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        asyncio.run(measure(texts, Path(directory)))


if __name__ == "__main__":
    main()

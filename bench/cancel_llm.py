"""How long after a client's cancel the loop of `llm` on Triton has stopped, from each transport.

    .venv/bin/python -m bench.cancel_llm [TIMES]

`weft up` beside a Triton with a tiny causal model. A turn is begun over each transport in turn, and cancelled
after its second event; the model says when it saw the text out of its batch, how many tokens it has made, and
how many of them for a text after that moment. Once with nothing else to write, once beside eight turns that
are written meanwhile. At the end as many turns as the model has slots are written whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import uvloop

from bench.setting import conditions, percentile, table
from tests.integration.test_mesh_cancel import CASES, Try
from tests.integration.test_mesh_llm import LlmMesh, running_llm_mesh
from tests.servers.tiny_llm import llm_counts
from tests.servers.transports import Transports, take, transports, turn
from weft import Weft

NAMES = {
    "browser (gRPC-Web)": "gRPC-Web aborted",
    "REST": "REST connection closed",
    "gRPC": "gRPC stub cancelled",
    "WebSocket": "WebSocket interrupt",
}
OTHERS = 8
SLOTS = 16
MARK_MS = 25.0
# So old are the counts that the model shows.
BEHIND_S = 0.1


async def counted(running: LlmMesh, name: str, least: float) -> dict[str, float]:
    """The model's counts once one of them is so much."""
    async with asyncio.timeout(20):
        while True:
            counts = await asyncio.to_thread(llm_counts, running.metrics_url)
            if counts[name] >= least:
                return counts
            await asyncio.sleep(0.02)


async def cancels(running: LlmMesh, wire: Transports, weft: Weft, times: int) -> dict[str, list[float]]:
    """Milliseconds from each act to the end of the loop."""
    unix_s = time.time() - time.monotonic()
    took: dict[str, list[float]] = {name: [] for name in NAMES}
    done = (await asyncio.to_thread(llm_counts, running.metrics_url))["cancelled"]
    for _ in range(times):
        for name, case in NAMES.items():
            this = Try(wire, weft, turn(f"Never end {uuid.uuid4().hex}", model_id="tiny"))
            acted_s = await CASES[case](this)
            done += 1
            await asyncio.sleep(BEHIND_S)  # until then it would only be disturbed
            await counted(running, "cancelled", done)
            counts = await counted(running, "stopped_at", unix_s + acted_s)
            took[name].append((counts["stopped_at"] - unix_s - acted_s) * 1e3)
    return took


@contextlib.asynccontextmanager
async def others(wire: Transports) -> AsyncIterator[None]:
    """Other turns are written while inside, one after the other."""

    async def write() -> None:
        while not leaving.is_set():
            await take(await wire.grpc(turn("Go on", model_id="tiny")))

    leaving = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(OTHERS):
            group.create_task(write())
        await asyncio.sleep(1)
        yield
        leaving.set()


async def measured(running: LlmMesh, times: int) -> None:
    token = running.mesh.token("bench")
    async with (
        transports(running.mesh.address, token) as wire,
        Weft(running.mesh.address, token=token) as weft,
    ):
        await take(await wire.grpc(turn("Begin", model_id="tiny")))
        alone = await cancels(running, wire, weft, times)
        await asyncio.sleep(0.5)
        quiet = await asyncio.to_thread(llm_counts, running.metrics_url)
        await asyncio.sleep(1)
        after = await asyncio.to_thread(llm_counts, running.metrics_url)
        async with others(wire):
            beside = await cancels(running, wire, weft, times)
        last = await asyncio.to_thread(llm_counts, running.metrics_url)
        streams = [await wire.grpc(turn("Whole", model_id="tiny")) for _ in range(SLOTS)]
        whole = await asyncio.gather(*(take(stream) for stream in streams))
    rows = [
        [name, times, *(f"{percentile(each[name], s):.1f}" for each in (alone, beside) for s in (0.5, 0.99))]
        for name in NAMES
    ]
    together = [[value for values in each.values() for value in values] for each in (alone, beside)]
    rows.append(["all", 4 * times, *(f"{percentile(each, s):.1f}" for each in together for s in (0.5, 0.99))])
    header = ["cancel", "times", "alone p50, ms", "p99", f"beside {OTHERS} turns p50", "p99"]
    table(header, rows)
    made = after["tokens"] - quiet["tokens"]
    print(f"The mark: p99 under {MARK_MS:.0f} ms.")
    print(
        f"Tokens made afterwards: {made:.0f} in a second, {last['late_tokens']:.0f} by the model's own count."
    )
    print(f"Of {SLOTS} turns after it {sum(each[-1].type == 'done' for each in whole)} were written whole.")
    print(conditions())


def main() -> None:
    times = int(sys.argv[1]) if sys.argv[1:] else 100
    with (
        tempfile.TemporaryDirectory(prefix="weft-bench-") as directory,
        running_llm_mesh(Path(directory), triton=True) as running,
    ):
        uvloop.run(measured(running, times))


if __name__ == "__main__":
    main()

"""The first token of `StreamChat` through Envoy, and the processor time of a stream, beside a bare relay.

    .venv/bin/python -m bench.stream_cost           beside the bare relay
    .venv/bin/python -m bench.stream_cost parts     what each part of the difference costs

Nothing searched, history and events kept; 20 events. The bare relay passes the same messages on over the
same two hops behind the same Envoy, without interceptors or stores. Closed loop; the servers take turns;
medians of the runs. Processor time is that of all Python servers together. Weft commits events before it
sends them and merges the text that comes meanwhile: a model that answers at once gives fewer. One that pauses
between its pieces gives all, and each is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import psutil
import uvloop

from bench.bare import EVENTS, PACED, PAUSE_S, TEXT
from bench.setting import percentile, servers_behind_envoy, spread, table
from tests.servers.mesh import Mesh
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

RUNS = 5
AT_ONCE = "What is a weft?"


@dataclass(frozen=True)
class Load:
    """So many callers at once, each asking so many times in one run."""

    callers: int
    turns: int
    question: str = AT_ONCE

    def __str__(self) -> str:
        return (
            f"{self.callers}"
            if self.question == AT_ONCE
            else f"{self.callers}, {PAUSE_S * 1e3:.0f} ms pauses"
        )


LOADS = (Load(1, 200), Load(64, 25), Load(64, 3, PACED))
PARTS = ("store", "metrics", "logs")

NAMES = {
    "first_ms": "first event, p50, ms",
    "cpu_ms": "processor time of a stream, ms",
    "per_second": "streams per second",
    "events": "events of a stream",
}


@dataclass
class Figures:
    """One value for each run."""

    first_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    events: list[float] = field(default_factory=list)


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[tuple[Mesh, psutil.Process]]:
    """The servers of `bench.bare` behind Envoy, and their process."""
    with servers_behind_envoy(("bench.bare", *arguments)) as mesh:
        asyncio.run(_ready(mesh))
        yield mesh, psutil.Process(mesh.processes["server-1"].pid)


async def _ready(mesh: Mesh) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    for _ in range(600):
        async with grpc.aio.insecure_channel(mesh.address) as channel:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await turn(ChatServiceStub(channel), metadata)
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"not ready\n{mesh.logs()}")


async def turn(
    stub: ChatServiceStub,
    metadata: tuple[tuple[str, str], ...],
    question: str = AT_ONCE,
    conversation_id: str = "",
) -> tuple[float, int]:
    """Seconds to the first event of one turn, and how many it had. A conversation of its own for ""."""
    request = StreamChatRequest(
        conversation_id=conversation_id or uuid.uuid4().hex, messages=[Message(role="user", content=question)]
    )
    began, first_s, text, count = time.perf_counter(), 0.0, "", 0
    async for event in stub.StreamChat(request, metadata=metadata):
        first_s = first_s or time.perf_counter() - began
        text += event.content
        count += 1
    assert event.type == "done" and text == TEXT, (event, text)
    return first_s, count


async def run(mesh: Mesh, process: psutil.Process, load: Load, figures: Figures) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = ChatServiceStub(channel)

        async def caller(number: int) -> list[tuple[float, int]]:
            if load.question == PACED:  # not all in step
                await asyncio.sleep(PAUSE_S * number / load.callers)
            return [await turn(stub, metadata, load.question) for _ in range(load.turns)]

        await asyncio.gather(*(turn(stub, metadata) for _ in range(2 * load.callers)))
        cpu_s, began = processor_s(process), time.perf_counter()
        done = [each for some in await asyncio.gather(*map(caller, range(load.callers))) for each in some]
        took_s, cpu_s = time.perf_counter() - began, processor_s(process) - cpu_s
    figures.first_ms.append(percentile([first_s for first_s, _ in done], 0.5) * 1e3)
    figures.cpu_ms.append(cpu_s / len(done) * 1e3)
    figures.per_second.append(len(done) / took_s)
    figures.events.append(sum(count for _, count in done) / len(done))


def processor_s(process: psutil.Process) -> float:
    """Processor time of a process and those that it started until now, in seconds."""
    family = [process, *process.children(recursive=True)]
    return float(sum(sum(each.cpu_times()[:2]) for each in family))


def beside_bare() -> None:
    figures = {(kind, load): Figures() for kind in ("bare", "weft") for load in LOADS}
    with served("bare") as bare, served("weft") as weft:
        for _ in range(RUNS):
            for kind, (mesh, process) in (("bare", bare), ("weft", weft)):
                for load in LOADS:
                    uvloop.run(run(mesh, process, load, figures[kind, load]))
    rows = []
    for load in LOADS:
        ours, bares = figures["weft", load], figures["bare", load]
        for name in NAMES:
            mine, other = getattr(ours, name), getattr(bares, name)
            ratio = statistics.median(mine) / statistics.median(other)
            rows.append([load, NAMES[name], spread(mine), spread(other), f"{ratio:.2f}"])
    table([f"callers, {EVENTS} events", "figure", "Weft", "bare", "ratio"], rows)


def parts() -> None:
    """Processor time of a stream with one part left out after the other."""
    kinds = [("bare",), *(("weft", *PARTS[:count]) for count in range(len(PARTS), -1, -1))]
    loads = LOADS[1:]
    figures = {(kind, load): Figures() for kind in kinds for load in loads}
    with contextlib.ExitStack() as stack:
        servers = [(kind, stack.enter_context(served(*kind))) for kind in kinds]
        for _ in range(RUNS):
            for kind, (mesh, process) in servers:
                for load in loads:
                    uvloop.run(run(mesh, process, load, figures[kind, load]))
    names = ["bare", "+ calls, errors, tokens, turns", *(f"+ {part}" for part in reversed(PARTS))]
    rows = []
    for load in loads:
        bare_ms = statistics.median(figures[kinds[0], load].cpu_ms)
        for name, kind in zip(names, kinds, strict=True):
            cpu_ms, events = figures[kind, load].cpu_ms, figures[kind, load].events
            ratio = f"{statistics.median(cpu_ms) / bare_ms:.2f}"
            rows.append([load, name, spread(cpu_ms), ratio, f"{statistics.median(events):.1f}"])
    table(["callers", "with", "processor time of a stream, ms", "of bare", "events"], rows)


if __name__ == "__main__":
    parts() if sys.argv[1:] == ["parts"] else beside_bare()

"""The first token of `StreamChat` through Envoy, and the processor time of a stream, beside a bare relay.

    .venv/bin/python -m bench.stream_cost

A model that answers at once, nothing searched, history and events kept; 20 events. The bare relay passes the
same messages on over the same two hops behind the same Envoy, without interceptors or stores. Closed loop;
the two take turns; medians of the runs. Processor time is that of all Python servers together. Weft commits
events before it sends them and merges the text that comes meanwhile: a model that never waits gives fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
import uvloop

from bench.bare import EVENTS, TEXT
from bench.setting import percentile, spread, table
from tests.servers.mesh import SERVICES, Mesh, free_port, mesh_environment
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

RUNS = 5
# Callers, and the turns of each in one run.
LOADS = ((1, 200), (64, 25))


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
def served(kind: str) -> Iterator[tuple[Mesh, psutil.Process]]:
    """The servers of `bench.bare` behind Envoy, and their process."""
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        data, port = Path(directory) / "data", free_port()
        addresses = dict.fromkeys(SERVICES, f"127.0.0.1:{free_port()}")
        addresses["edge"] = f"127.0.0.1:{free_port()}"
        extra = {f"WEFT_{name.upper()}_ADDRESS": address for name, address in addresses.items()}
        mesh = Mesh(
            port, data, mesh_environment(data, port, {**extra, "WEFT_REQUESTS_PER_MINUTE": "10000000"})
        )
        log = (Path(directory) / "servers.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.bare", kind], env=mesh.environment, stdout=log, stderr=log
        )
        mesh.processes["servers"] = process
        try:
            mesh.start("envoy", "envoy")
            asyncio.run(_ready(mesh))
            yield mesh, psutil.Process(process.pid)
        finally:
            mesh.stop()
            log.close()


async def _ready(mesh: Mesh) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    for _ in range(600):
        async with grpc.aio.insecure_channel(mesh.address) as channel:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await turn(ChatServiceStub(channel), metadata)
                return
        await asyncio.sleep(0.1)
    raise RuntimeError(f"not ready\n{mesh.logs()}")


async def turn(stub: ChatServiceStub, metadata: tuple[tuple[str, str], ...]) -> tuple[float, int]:
    """Seconds to the first event of one turn, and how many events it had."""
    request = StreamChatRequest(
        conversation_id=uuid.uuid4().hex, messages=[Message(role="user", content="What is a weft?")]
    )
    began, first_s, text, count = time.perf_counter(), 0.0, "", 0
    async for event in stub.StreamChat(request, metadata=metadata):
        first_s = first_s or time.perf_counter() - began
        text += event.content
        count += 1
    assert event.type == "done" and text == TEXT, (event, text)
    return first_s, count


async def run(mesh: Mesh, process: psutil.Process, callers: int, turns: int, figures: Figures) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = ChatServiceStub(channel)

        async def caller(count: int) -> list[tuple[float, int]]:
            return [await turn(stub, metadata) for _ in range(count)]

        await asyncio.gather(*(caller(2) for _ in range(callers)))
        cpu, began = sum(process.cpu_times()[:2]), time.perf_counter()
        done = [
            each for some in await asyncio.gather(*(caller(turns) for _ in range(callers))) for each in some
        ]
        took_s = time.perf_counter() - began
        cpu = sum(process.cpu_times()[:2]) - cpu
    figures.first_ms.append(percentile([first_s for first_s, _ in done], 0.5) * 1e3)
    figures.cpu_ms.append(cpu / len(done) * 1e3)
    figures.per_second.append(len(done) / took_s)
    figures.events.append(sum(count for _, count in done) / len(done))


def main() -> None:
    figures = {(kind, callers): Figures() for kind in ("bare", "weft") for callers, _ in LOADS}
    with served("bare") as bare, served("weft") as weft:
        for _ in range(RUNS):
            for kind, (mesh, process) in (("bare", bare), ("weft", weft)):
                for callers, turns in LOADS:
                    uvloop.run(run(mesh, process, callers, turns, figures[kind, callers]))
    rows = []
    for callers, _ in LOADS:
        ours, bares = figures["weft", callers], figures["bare", callers]
        for name in NAMES:
            mine, other = getattr(ours, name), getattr(bares, name)
            ratio = statistics.median(mine) / statistics.median(other)
            rows.append([callers, NAMES[name], spread(mine), spread(other), f"{ratio:.2f}"])
    table([f"callers, {EVENTS} events", "figure", "Weft", "bare", "ratio"], rows)


if __name__ == "__main__":
    main()

"""A mesh under half of its load for an hour: memory, descriptors, threads and tasks must stay flat.

    .venv/bin/python -m bench.soak [MINUTES]

`weft up` with the defaults and a few documents. What it can answer is measured first, by callers that ask
again as soon as they are answered; then half of that is asked, on every transport in turn, while a dataset
is uploaded, indexed and deleted every half minute and some streams are left in the middle. Flat: after a
warm-up of a fifth of the time, the least of the last two fifths is above the least of the two before by less
than a twentieth, and 1 MiB or one more (of threads 16: pools are filled when they are needed).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.setting import client, fresh_mesh, indexed, processes, prose, table
from tests.servers.mesh import Mesh, free_port
from tests.servers.transports import take, transports, turn

__all__ = ["environment", "is_flat", "soak", "troughs"]

TRANSPORTS = ("grpc", "rest", "converse", "grpc-web", "ws")
_PIECE_S = 20.0
_SAMPLE_S = 2.0


@dataclass
class Soaked:
    """Samples by (process, what); turns and errors of the load."""

    samples: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    per_second: float = 0.0
    turns: int = 0
    errors: dict[str, int] = field(default_factory=dict)


def troughs(samples: list[float]) -> tuple[float, float]:
    """The least of the second and third fifth, and of the last two: what comes and goes is in neither."""
    fifth = len(samples) // 5
    return min(samples[fifth : 3 * fifth]), min(samples[3 * fifth :])


def is_flat(what: str, samples: list[float]) -> bool:
    # Pools of threads are filled when there is more to do for a moment; a busy machine has more turns open.
    slack = {"threads": 16, "tasks": 8}.get(what, 1)
    before, after = troughs(samples)
    return after <= before * 1.05 + slack


async def soak(mesh: Mesh, minutes: float) -> Soaked:
    """The mesh must serve its metrics at WEFT_METRICS_ADDRESS."""
    soaked = Soaked()
    await asyncio.to_thread(mesh.wait_started)
    with client(mesh) as rest:
        files = {"file": ("notes.txt", prose(seed=1, words=5_000).encode())}
        rest.post("/api/v1/knowledge/upload", data={"dataset_id": "kept"}, files=files).raise_for_status()
        rest.post("/api/v1/knowledge/index", json={"dataset_id": "kept"}).raise_for_status()
        await asyncio.to_thread(indexed, rest, "kept")
    token = mesh.token()
    most = await _load(mesh, token, "grpc", "--callers", "16", "--duration", "10")
    soaked.per_second = most["qps"] / 2
    until = time.monotonic() + minutes * 60
    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(work) for work in (_sample(mesh, soaked), _datasets(mesh), _leave(mesh, token))
        ]
        for transport in itertools.cycle(TRANSPORTS):
            if time.monotonic() >= until:
                break
            rate = ("--rate", f"{soaked.per_second:.2f}", "--duration", f"{_PIECE_S:.0f}")
            measured = await _load(mesh, token, transport, *rate)
            soaked.turns += measured["answered"]
            for reason, count in measured["errors"].items():
                soaked.errors[reason] = soaked.errors.get(reason, 0) + count
        for task in beside:
            task.cancel()
    return soaked


async def _load(mesh: Mesh, token: str, transport: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "weftd", "load", "--address", mesh.address, "--transport", transport]
    question = ("--question", "What does the shuttle carry?")
    load = await asyncio.create_subprocess_exec(
        *command,
        *question,
        *options,
        "--json",
        env=mesh.environment | {"WEFT_TOKEN": token},
        stdout=subprocess.PIPE,
    )
    said, _ = await load.communicate()
    return dict(json.loads(said))


async def _sample(mesh: Mesh, soaked: Soaked) -> None:
    """Every 2 s the size of each process, and what the services' loop has to do."""
    watched = processes(mesh)
    watched.pop("parser", None)
    address = mesh.environment["WEFT_METRICS_ADDRESS"]
    async with httpx.AsyncClient() as http:
        while True:
            for name, process in watched.items():
                soaked.samples[name, "MiB"].append(process.memory_info().rss / 2**20)
                soaked.samples[name, "descriptors"].append(process.num_fds())
                soaked.samples[name, "threads"].append(process.num_threads())
            page = (await http.get(f"http://{address}/metrics")).text
            tasks = re.search(r"^weft_loop_tasks (\S+)$", page, re.M)
            assert tasks is not None, "no weft_loop_tasks"
            soaked.samples["services", "tasks"].append(float(tasks[1]))
            await asyncio.sleep(_SAMPLE_S)


async def _datasets(mesh: Mesh) -> None:
    """A dataset comes and goes."""
    with client(mesh) as rest:
        for number in itertools.count():
            await asyncio.to_thread(_dataset, rest, number)
            await asyncio.sleep(30)


def _dataset(rest: httpx.Client, number: int) -> None:
    name = f"passing-{number}"
    files = {"file": ("passing.txt", prose(seed=number, words=2_000).encode())}
    rest.post("/api/v1/knowledge/upload", data={"dataset_id": name}, files=files).raise_for_status()
    rest.post("/api/v1/knowledge/index", json={"dataset_id": name}).raise_for_status()
    indexed(rest, name)
    rest.delete(f"/api/v1/knowledge/datasets/{name}").raise_for_status()


async def _leave(mesh: Mesh, token: str) -> None:
    """A client that breaks its connection off in the middle of an answer, on each transport in turn."""
    async with transports(mesh.address, token) as opened:
        for transport in itertools.cycle(("grpc", "web", "rest", "converse", "ws")):
            stream = await getattr(opened, transport)(turn("What does the shuttle carry?", resumable=True))
            await take(stream, 1)
            await stream.cut()
            await asyncio.sleep(1)


def environment() -> dict[str, str]:
    """What `soak` needs of a mesh."""
    return {"WEFT_METRICS_ADDRESS": f"127.0.0.1:{free_port()}"}


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with fresh_mesh(environment()) as mesh:
        soaked = asyncio.run(soak(mesh, minutes))
    rows = []
    for (name, what), samples in soaked.samples.items():
        before, after = troughs(samples)
        rows.append([name, what, f"{before:.0f}", f"{after:.0f}", "yes" if is_flat(what, samples) else "NO"])
    table(["process", "what", "least before", "least at the end", "flat"], rows)
    errors = ", ".join(f"{reason} {count}" for reason, count in soaked.errors.items()) or "none"
    print(
        f"{minutes:g} min, {soaked.per_second:.1f} turns a second, {soaked.turns} answers, errors: {errors}"
    )


if __name__ == "__main__":
    main()

"""One of two workers killed under load, and `weft restart` under load.

    .venv/bin/python -m bench.kill_worker [KILLS]

`weft up --workers 2` under a load of reads and of chats over every transport. One worker at a time is killed
with -9 once both are there (20 times); then `weft restart` exchanges both (3 times). Reads that may be sent
twice must all be answered; every stream must resume to the same text, or, where the model cannot go on with
a text, end with what was stored and INTERRUPTED.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.disturbed import Account, disturbed, gone
from bench.setting import table
from tests.servers.mesh import Mesh, free_port, two_free_ports
from tests.servers.model_mesh import ModelMesh, running_model_mesh

__all__ = ["kill_and_restart", "two_workers"]


@contextlib.contextmanager
def two_workers(directory: Path) -> Iterator[ModelMesh]:
    """`weft up --workers 2` with models at a known pace."""
    more = {
        "WEFT_ENVOY_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        "WEFT_METRICS_ADDRESS": f"127.0.0.1:{two_free_ports()}",
        "WEFT_REQUESTS_PER_MINUTE": "1000000",
        "WEFT_RESUME_GRACE_S": "30",  # as in `kill_mesh`
    }
    with running_model_mesh(directory, "two", more) as running:
        asyncio.run(both_serve(running.mesh))
        running.mesh.wait_started()  # its job process, at the lowest priority, comes last
        yield running


async def kill_and_restart(model_mesh: ModelMesh, kills: int, restarts: int) -> tuple[Account, Account]:
    """The accounts of the kills and of the restarts."""
    mesh, dice = model_mesh.mesh, random.Random(1)
    async with disturbed(model_mesh, with_uploads=False) as killed:
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(0.5, 1.5))
            await gone(dice.choice(mesh.workers()))
            await both_serve(mesh)
    async with disturbed(model_mesh, with_uploads=False) as restarted:
        for _ in range(restarts):
            before = {worker.pid for worker in mesh.workers()}
            command = [sys.executable, "-m", "weftd", "restart"]
            await asyncio.to_thread(subprocess.run, command, env=mesh.environment, check=True)
            assert not before & {worker.pid for worker in mesh.workers()}, "not restarted"
            await asyncio.sleep(0.5)
    return killed, restarted


async def both_serve(mesh: Mesh, limit_s: float = 60) -> None:
    """Until both say so, and Envoy counts two healthy servers: it believes in a dead one for a while."""
    until = time.monotonic() + limit_s
    while not await asyncio.to_thread(_ready, mesh) or await asyncio.to_thread(_healthy, mesh) != 2:
        if time.monotonic() > until:
            raise TimeoutError(f"a worker did not come back within {limit_s} s\n{mesh.logs()}")
        await asyncio.sleep(0.1)


def _ready(mesh: Mesh) -> bool:
    """The supervisor holds the sockets: what asks while a worker is away waits for the next one."""
    host, _, first = mesh.environment["WEFT_METRICS_ADDRESS"].rpartition(":")
    pages = [httpx.get(f"http://{host}:{int(first) + slot}/ready", timeout=30) for slot in range(2)]
    return all(page.status_code == 200 for page in pages)


def _healthy(mesh: Mesh) -> int:
    """As Envoy sees it."""
    page = httpx.get(f"http://{mesh.environment['WEFT_ENVOY_METRICS_ADDRESS']}/stats/prometheus").text
    healthy = re.search(r'^envoy_cluster_membership_healthy\{envoy_cluster_name="chat"\} (\d+)$', page, re.M)
    return int(healthy[1]) if healthy else 0


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with (
        tempfile.TemporaryDirectory(prefix="weft-bench-") as directory,
        two_workers(Path(directory)) as model_mesh,
    ):
        killed, restarted = asyncio.run(kill_and_restart(model_mesh, kills, 3))
    rows = [
        [what, a.reads, a.failed_reads.total(), a.turns, a.resumed, a.interrupted, len(a.wrong)]
        for what, a in ((f"{kills} kills", killed), ("3 restarts", restarted))
    ]
    table(["two workers", "reads", "failed", "turns", "resumed", "interrupted", "wrong"], rows)
    for line in [*killed.wrong, *restarted.wrong, *killed.failed_reads, *restarted.failed_reads]:
        print(line)


if __name__ == "__main__":
    main()

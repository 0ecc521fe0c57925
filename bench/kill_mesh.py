"""Each process of a mesh killed with -9 at random points of uploads, index jobs and chats.

    .venv/bin/python -m bench.kill_mesh [KILLS]

`weft up` under a load of chats over every transport, uploads and index jobs. 50 times one of its processes
is killed: services, the one that writes SQLite for them, job process, Envoy, or the supervisor, with which
all others end and which is started again. Whatever was acknowledged must be there: files, documents, events.
Every stream must resume to the same text, or, where the model cannot go on with a text, end with what was
stored and INTERRUPTED.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from bench.disturbed import Account, disturbed, gone
from bench.setting import processes, table
from tests.servers.mesh import Mesh
from tests.servers.model_mesh import ModelMesh, running_model_mesh

__all__ = ["VICTIMS", "kill_each", "unlimited_mesh"]

VICTIMS = ("services", "jobs", "writer", "services", "envoy", "jobs", "writer", "supervisor")


async def kill_each(model_mesh: ModelMesh, kills: int) -> tuple[Account, Counter[str]]:
    """The account, and how often each was killed."""
    mesh, dice = model_mesh.mesh, random.Random(1)
    killed: Counter[str] = Counter()
    # A job process that is killed while it starts for the first time ends the whole mesh.
    await asyncio.to_thread(mesh.wait_started)
    async with disturbed(model_mesh) as account:
        for victim in itertools.islice(itertools.cycle(VICTIMS), kills):
            await asyncio.sleep(dice.uniform(0, 4))
            await _kill(mesh, victim)
            killed[victim] += 1
    return account, killed


async def _kill(mesh: Mesh, victim: str) -> None:
    running = await asyncio.to_thread(_running, mesh, victim)
    await gone(running[victim])
    if victim == "supervisor":
        mesh.processes["up"].wait()
        psutil.wait_procs([each for name, each in running.items() if name != victim], timeout=30)
        mesh.start("up", "up")
        await asyncio.to_thread(mesh.wait_started)


def _running(mesh: Mesh, victim: str) -> dict[str, psutil.Process]:
    """The processes, once the victim is one of them: the last one may not yet be replaced."""
    while victim not in (running := processes(mesh)):
        time.sleep(0.05)
    return running


def unlimited_mesh(directory: Path) -> AbstractContextManager[ModelMesh]:
    """`weft up` with models at a known pace.

    A resumable turn waits for its client longer than any machine needs to have Envoy back: how soon that is
    is not the question here.
    """
    more = {"WEFT_REQUESTS_PER_MINUTE": "1000000", "WEFT_RESUME_GRACE_S": "30"}
    return running_model_mesh(directory, "one", more)


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    with (
        tempfile.TemporaryDirectory(prefix="weft-bench-") as directory,
        unlimited_mesh(Path(directory)) as model_mesh,
    ):
        account, killed = asyncio.run(kill_each(model_mesh, kills))
    header = ["kills", "turns", "resumed", "interrupted", "uploads", "datasets indexed", "wrong"]
    row = [account.turns, account.resumed, account.interrupted, account.uploads, account.indexed]
    table(header, [[", ".join(f"{n} {name}" for name, n in killed.items()), *row, len(account.wrong)]])
    for line in account.wrong:
        print(line)


if __name__ == "__main__":
    main()

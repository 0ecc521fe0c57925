"""Streams per second of two workers beside one.

    .venv/bin/python -m bench.two_workers

A model that answers at once, nothing searched, history and events kept in SQLite; `StreamChat` through Envoy,
64 callers from a `weft load` of two processes. The two meshes take turns; medians of the runs. It needs four
cores: the loader and Envoy run on them too.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

import psutil

from bench.setting import servers_behind_envoy, spread, table
from bench.stream_cost import processor_s
from tests.servers.mesh import Mesh

RUNS = 5
CALLERS = 64
LASTS_S = 10


@contextlib.contextmanager
def workers(count: int) -> Iterator[Mesh]:
    """So many processes of all services on the same data, with the model of `bench.bare`, behind Envoy."""
    with servers_behind_envoy(*[("bench.bare", "weft")] * count) as mesh:
        mesh.wait_ready()
        yield mesh


def run(mesh: Mesh) -> tuple[float, float]:
    """Streams per second, and cores that the workers took."""
    running = [psutil.Process(p.pid) for name, p in mesh.processes.items() if name.startswith("server")]
    before = sum(map(processor_s, running))
    options = ["--callers", str(CALLERS), "--processes", "2", "--duration", str(LASTS_S), "--json"]
    load = subprocess.run(
        [sys.executable, "-m", "weftd", "load", "--address", mesh.address, *options],
        env=mesh.environment | {"WEFT_TOKEN": mesh.token()},
        stdout=subprocess.PIPE,
        check=True,
    )
    measured = json.loads(load.stdout)
    cpu_s = sum(map(processor_s, running)) - before
    return measured["qps"], cpu_s / (LASTS_S + 1)


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 4:
        print(f"Skipped: this machine has {cores} cores, and it takes four.")
        return
    figures: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    with workers(1) as one, workers(2) as two:
        for _ in range(RUNS):
            figures[1].append(run(one))
            figures[2].append(run(two))
    rows = [
        [count, spread([each for each, _ in some], ".0f"), spread([cpu for _, cpu in some])]
        for count, some in figures.items()
    ]
    table(["workers", "streams per second", "cores of the workers"], rows)
    ratio = statistics.median(x for x, _ in figures[2]) / statistics.median(x for x, _ in figures[1])
    print(f"two beside one: {ratio:.2f}")


if __name__ == "__main__":
    main()

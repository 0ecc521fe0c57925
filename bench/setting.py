"""What the measurements share: a mesh of their own, its processes, texts, and tables."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import lancedb
import psutil

from tests.servers.mesh import SERVICES, Mesh, free_port, mesh_environment, running_mesh

__all__ = [
    "MemoryWatch",
    "client",
    "conditions",
    "fresh_mesh",
    "indexed",
    "percentile",
    "processes",
    "prose",
    "servers_behind_envoy",
    "spread",
    "stored",
    "table",
]

_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "ki",
    "lo",
    "mu",
    "na",
    "ro",
    "su",
    "ta",
    "ve",
    "bri",
    "cla",
    "dre",
)
_COMMON = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "on",
    "with",
    "as",
    "was",
    "by",
    "or",
    "which",
    "at",
)


@contextlib.contextmanager
def fresh_mesh(environment: Mapping[str, str] | None = None) -> Iterator[Mesh]:
    """`weft up` with data of its own, which are removed at the end, also by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        unlimited = {"WEFT_REQUESTS_PER_MINUTE": "1000000"}
        with running_mesh(Path(directory), "one", {**unlimited, **(environment or {})}) as mesh:
            yield mesh


@contextlib.contextmanager
def servers_behind_envoy(
    *programs: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Mesh]:
    """Programs of ours (`python -m …`), each with all services at addresses of its own, behind one Envoy.

    The mesh has them as "server-1", "server-2" … beside "envoy". They may not be ready yet.
    """
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        data, port = Path(directory) / "data", free_port()
        unlimited = {"WEFT_REQUESTS_PER_MINUTE": "10000000"}
        mesh = Mesh(port, data, mesh_environment(data, port, {**unlimited, **(environment or {})}))
        each = [_own_addresses() for _ in programs]
        try:
            for number, (program, own) in enumerate(zip(programs, each, strict=True), 1):
                with (Path(directory) / f"server-{number}.log").open("wb") as log:
                    mesh.processes[f"server-{number}"] = subprocess.Popen(
                        [sys.executable, "-m", *program], env=mesh.environment | own, stdout=log, stderr=log
                    )
            mesh.environment |= {name: ",".join(own[name] for own in each) for name in each[0]}
            mesh.start("envoy", "envoy")
            yield mesh
        finally:
            mesh.stop()


def _own_addresses() -> dict[str, str]:
    grpc, edge = free_port(), free_port()
    return {
        f"WEFT_{name.upper()}_ADDRESS": f"127.0.0.1:{edge if name == 'edge' else grpc}" for name in SERVICES
    }


# What stands in the command line of each.
_PROCESSES = {
    "--config-path": "envoy",
    "write_child": "writer",
    "weftd serve": "services",
    "weftd jobs": "jobs",
}


def processes(mesh: Mesh) -> dict[str, psutil.Process]:
    """The processes of `weft up` by name: supervisor, services, writer, jobs, envoy, and a parser."""
    up = psutil.Process(mesh.processes["up"].pid)
    named = {"supervisor": up}
    for child in up.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            what = " ".join(child.cmdline())
            named[next((name for part, name in _PROCESSES.items() if part in what), "parser")] = child
    return named


def client(mesh: Mesh, tenant: str = "acme", timeout_s: float = 600) -> httpx.Client:
    """REST through Envoy, as an operator of `tenant`."""
    headers = {"Authorization": f"Bearer {mesh.token(tenant)}"}
    return httpx.Client(base_url=mesh.url, headers=headers, timeout=timeout_s)


def indexed(rest: httpx.Client, dataset_id: str, timeout_s: float = 900) -> dict[str, object]:
    """Waits until the dataset's job is over; its status. RuntimeError where it failed."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = rest.get(f"/api/v1/knowledge/status/{dataset_id}").raise_for_status().json()
        if answer["status"] == "ready":
            return dict(answer)
        if answer["status"] == "failed":
            raise RuntimeError(f"indexing failed: {answer}")
        time.sleep(0.05)
    raise RuntimeError(f"not indexed within {timeout_s} s: {answer}")


def stored(mesh: Mesh, dataset_id: str) -> list[dict[str, Any]]:
    """The rows of a dataset in the embedded passage store, by document and ordinal."""
    database = lancedb.connect(mesh.data / "passages")
    rows: list[dict[str, Any]] = []
    for name in database.list_tables(limit=1000).tables:
        query = database.open_table(name).search().where(f"dataset_id = '{dataset_id}'")
        rows += query.limit(1_000_000).to_list()
    return sorted(rows, key=lambda row: (row["name"], row["ordinal"]))


def prose(seed: int, words: int) -> str:
    """English-like sentences of made-up and common words, the same for the same seed."""
    dice = random.Random(seed)
    names = ["".join(dice.choices(_SYLLABLES, k=3)) for _ in range(200)]
    sentences = []
    while words > 0:
        length = min(words, dice.randint(8, 20))
        sentence = " ".join(dice.choice(_COMMON if dice.random() < 0.45 else names) for _ in range(length))
        sentences.append(sentence.capitalize() + ".")
        words -= length
    return " ".join(sentences)


class MemoryWatch:
    """The most resident memory of each process while inside `with`, in bytes."""

    def __init__(self, watched: Mapping[str, psutil.Process], interval_s: float = 0.02) -> None:
        self._watched = watched
        self._interval_s = interval_s
        self._over = threading.Event()
        self.peak = {name: process.memory_info().rss for name, process in watched.items()}

    def __enter__(self) -> MemoryWatch:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(self._interval_s):
            for name, process in self._watched.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.peak[name] = max(self.peak[name], process.memory_info().rss)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def conditions() -> str:
    """Where and with what this runs; the load says whether the machine had other work."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "onnxruntime", "lancedb", "dbos"))
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores, load {load}, Python {platform.python_version()}, {libraries}, "
        f"{time.strftime('%Y-%m-%d %H:%M')}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints Markdown, so that a figure can be kept as it is, and what it was measured on."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(f"\n{conditions()}", flush=True)
    sys.stdout.flush()

"""What a hostile client can do: 100,000 inputs of every kind, and whether the mesh is as it was.

.venv/bin/python -m bench.fuzz [--inputs 100000] [--seed N]

A failure is an answer 500, INTERNAL, UNKNOWN or UNAVAILABLE, none within 20 s, a refusal that is no JSON or
as long as what was sent, an `error` in a log, or a process that died. Its input is printed with the seed,
which draws the same again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import hypothesis
import psutil
from hypothesis import HealthCheck, Phase, given, settings

from bench.fuzz_documents import garbled_documents
from bench.fuzz_inputs import SURFACES
from bench.fuzz_wire import Wire
from bench.setting import fresh_mesh, processes, table
from tests.servers.mesh import Mesh

__all__ = ["Found", "Fuzzed", "fuzz"]

_MOST_FAILURES = 5
# A document takes its parser half a second.
_INPUTS_A_DOCUMENT = 500
_LONGEST_PRINTED = 1500


@dataclass
class Found:
    """What came of the inputs of one surface."""

    surface: str
    inputs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    took_s: float = 0.0


@dataclass
class Fuzzed:
    """`rss_mb`: resident memory of each process before, after the first half and at the end."""

    found: list[Found]
    died: list[str]
    logged: list[str]
    rss_mb: dict[str, tuple[float, float, float]]

    @property
    def failures(self) -> list[str]:
        return [*self.died, *self.logged, *(each for one in self.found for each in one.failures)]


def fuzz(mesh: Mesh, inputs: int, seed: int, workers: int = 4) -> Fuzzed:
    """Sends about so many inputs, in two halves: memory may grow in the first, until buffers are as they
    stay."""
    token = mesh.token("fuzz")
    watched = {name: each for name, each in processes(mesh).items() if name != "parser"}
    rss = {name: [process.memory_info().rss] for name, process in watched.items()}
    found: dict[str, Found] = {name: Found(name) for name in SURFACES}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for half in range(2):
            jobs: list[Future[Found]] = []
            for name, (share, _) in SURFACES.items():
                count = max(1, round(inputs * share / 2))
                # Pieces, so that every worker has something until the end.
                for piece in range(0, count, 2500):
                    job = (
                        mesh.address,
                        token,
                        name,
                        min(2500, count - piece),
                        seed + half * 1000 + piece // 2500,
                    )
                    jobs.append(pool.submit(_fuzz_surface, *job))
            for job_done in jobs:
                _add(found, job_done.result())
            for name, process in watched.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    rss[name].append(process.memory_info().rss)
    count = max(25, inputs // _INPUTS_A_DOCUMENT)
    began = time.monotonic()
    outcomes, failures = garbled_documents(mesh, token, count, seed)
    found["documents"] = Found("documents, indexed", count, outcomes, failures, time.monotonic() - began)
    now = processes(mesh)
    died = [
        f"{name} died" for name, process in watched.items() if name not in now or now[name].pid != process.pid
    ]
    return Fuzzed(
        list(found.values()),
        died,
        list(_faults(mesh)),
        {name: (each[0] / 1e6, each[1] / 1e6, each[-1] / 1e6) for name, each in rss.items()},
    )


def _fuzz_surface(address: str, token: str, surface: str, inputs: int, seed: int) -> Found:
    """In a process of its own: drawing costs more than sending."""
    wire, found, began = Wire(address, token), Found(surface), time.monotonic()

    @hypothesis.seed(seed)
    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(SURFACES[surface][1])
    def try_it(sent: object) -> None:
        found.inputs += 1
        complaint = wire.try_it(sent)
        if complaint and len(found.failures) < _MOST_FAILURES:
            shown = repr(sent)
            shown = shown if len(shown) <= _LONGEST_PRINTED else f"{shown[:_LONGEST_PRINTED]}… ({len(shown)})"
            found.failures.append(f"{surface}, seed {seed}: {complaint}\n    {shown}")

    try_it()
    found.codes = Counter(wire.codes)
    found.took_s = time.monotonic() - began
    return found


def _add(found: dict[str, Found], more: Found) -> None:
    one = found[more.surface]
    one.inputs += more.inputs
    one.codes += more.codes
    one.failures += more.failures[: max(0, _MOST_FAILURES - len(one.failures))]
    one.took_s += more.took_s


def _faults(mesh: Mesh) -> Iterator[str]:
    """Lines of the logs that tell of a fault."""
    for file in sorted(Path(mesh.data).glob("logs/*.log")):
        if file.name == "access.log":
            continue
        for line in file.read_text(errors="replace").splitlines():
            try:
                level = json.loads(line).get("level", "")
            except (ValueError, AttributeError):
                level = "error" if "Traceback" in line or "Error" in line else ""
            if level in ("error", "critical"):
                yield f"{file.name}: {line[:600]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    with fresh_mesh() as mesh:
        fuzzed = fuzz(mesh, options.inputs, options.seed)
    rows = [
        [
            each.surface,
            f"{each.inputs:,}",
            f"{each.took_s / max(each.inputs, 1) * 1000:.0f}",
            ", ".join(f"{code} {count:,}" for code, count in sorted(each.codes.items())),
            len(each.failures),
        ]
        for each in fuzzed.found
    ]
    rows.append(["all", f"{sum(each.inputs for each in fuzzed.found):,}", "", "", len(fuzzed.failures)])
    table(["what", "inputs", "ms each", "answers", "failures"], rows)
    print(f"seed {options.seed}\n")
    memory = [[name, *(f"{value:.0f}" for value in values)] for name, values in fuzzed.rss_mb.items()]
    table(["MB resident", "before", "after half", "at the end"], memory)
    for failure in fuzzed.failures[:40]:
        print(f"\n{failure}")
    sys.exit(bool(fuzzed.failures))


if __name__ == "__main__":
    main()

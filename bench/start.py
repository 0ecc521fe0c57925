"""How long `weft up` takes until it is ready, on a new directory and on one with data, and what it costs.

.venv/bin/python -m bench.start
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path

import psutil

from bench.setting import processes, spread, table
from tests.servers.mesh import running_mesh

ROUNDS = 3
READY = re.compile(r"ready after ([\d.]+) s")


def start(directory: Path, starts: int = 1) -> tuple[float, dict[str, float]]:
    """Seconds until ready, the `starts`th time in this directory, and processor seconds by process."""
    with running_mesh(directory) as mesh:
        while len(told := READY.findall((directory / "up.log").read_text())) < starts:
            time.sleep(0.05)  # the services answer, the job process is not ready yet
        used = {name: _cpu_s(process) for name, process in processes(mesh).items()}
    return float(told[-1]), used


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def main() -> None:
    rows = []
    for condition in ("new directory", "with data"):
        seconds: list[float] = []
        used: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as kept:
            if condition == "with data":
                start(Path(kept))
            for number in range(ROUNDS):
                with tempfile.TemporaryDirectory(prefix="weft-bench-") as fresh:
                    again = condition == "with data"
                    ready_s, cpu_s = start(Path(kept), number + 2) if again else start(Path(fresh))
                seconds.append(ready_s)
                for name, value in cpu_s.items():
                    used.setdefault(name, []).append(value)
        rows.append([condition, spread(seconds, ".1f"), *(spread(values, ".1f") for values in used.values())])
    table(["`weft up`", "ready after, s", *(f"{name}, processor s" for name in used)], rows)


if __name__ == "__main__":
    main()

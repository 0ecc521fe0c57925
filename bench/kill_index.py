"""The job process of a mesh killed with -9 while it indexes: the same index, no finished step again.

    .venv/bin/python -m bench.kill_index [KILLS]

A dataset is indexed undisturbed; then the same documents again in datasets of their own, the job process
killed at random points until there were 20 kills, and started again by `weft up` each time. Compared are the
passages with their vectors. That a step ran again is told from two witnesses: the workflows' own record of
finished steps (read right after each kill) and the log, where each step says that it begins.
"""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import numpy as np
import psutil

from bench.setting import client, fresh_mesh, indexed, processes, prose, stored, table
from tests.servers.mesh import Mesh

__all__ = ["Disturbed", "disturb"]

Step = tuple[str, int]
"""Its name and its number within the job."""
Passages = dict[tuple[str, int], tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float32]]]]
CONTENT = ("page", "heading", "content", "tokens")


@dataclass
class Disturbed:
    """What came of it: `again` are the finished steps that began once more."""

    kills: int = 0
    datasets: int = 0
    passages: int = 0
    finished: int = 0
    again: list[Step] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def documents(words: int) -> dict[str, bytes]:
    """A long one, which takes many steps, short ones, one in Chinese and one that is refused."""
    files = {
        "long.txt": prose(seed=2, words=words),
        "notes.md": "# One\n\n" + prose(seed=3, words=500) + "\n\n# Two\n\n" + prose(seed=4, words=500),
        "梭子.txt": "梭子穿过经线，织机的声音传得很远。" * 200,
        "broken.pdf": "%PDF-1.7 and no more",
    }
    return {name: text.encode() for name, text in files.items()}


def disturb(mesh: Mesh, kills: int, words: int = 30_000, seed: int = 1) -> Disturbed:
    """Kills the job process so often; the longest document has `words`. The mesh must log at "debug"."""
    dice, result = random.Random(seed), Disturbed()
    with client(mesh, "killed") as rest:
        _begin(rest, "whole", words)
        expected, lasts_s = _passages(mesh, "whole", indexed(rest, "whole")), _lasts_s(mesh)
        while result.kills < kills:
            result.datasets += 1
            dataset = f"killed-{result.datasets}"
            job_id = _begin(rest, dataset, words)
            finished: list[tuple[int, set[Step]]] = []
            while result.kills < kills and _works(mesh, rest, dataset, job_id):
                time.sleep(dice.uniform(0, lasts_s / 3))
                _kill(mesh)
                finished.append((len(_begun(mesh, job_id)), _finished(mesh, job_id)))
                result.kills += 1
            found = _passages(mesh, dataset, indexed(rest, dataset))
            begun = _begun(mesh, job_id)
            for position, done in finished:
                result.finished += len(done)
                result.again += [step for step in begun[position:] if step in done]
            result.passages = len(found)
            result.differences += _differences(expected, found)
    return result


def _begin(rest: httpx.Client, dataset: str, words: int) -> str:
    files = [("file", (name, data)) for name, data in documents(words).items()]
    rest.post("/api/v1/knowledge/upload", data={"dataset_id": dataset}, files=files).raise_for_status()
    body = {"dataset_id": dataset, "options": {"chunk_size": 64}}
    return str(rest.post("/api/v1/knowledge/index", json=body).raise_for_status().json()["job_id"])


def _works(mesh: Mesh, rest: httpx.Client, dataset: str, job_id: str) -> bool:
    """Waits for the job process to begin a step of this job; False when the job is over before."""
    begun = len(_begun(mesh, job_id))
    while len(_begun(mesh, job_id)) == begun:
        status = rest.get(f"/api/v1/knowledge/status/{dataset}").raise_for_status().json()
        if status["status"] == "failed":
            raise RuntimeError(f"{dataset}: {status}")
        if status["status"] == "ready":
            return False
        time.sleep(0.01)
    return True


def _kill(mesh: Mesh) -> None:
    """Kills the job process that runs, and returns when it is gone."""
    while (jobs := processes(mesh).get("jobs")) is None:
        time.sleep(0.01)  # the one before is not yet replaced
    jobs.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        while jobs.is_running() and jobs.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.002)


def _begun(mesh: Mesh, job_id: str) -> list[Step]:
    """Every step of the job that began so far, in order."""
    lines = (mesh.data / "logs" / "jobs.log").read_text(errors="replace").splitlines()
    logged = [json.loads(line) for line in lines if '"job_step"' in line and line.endswith("}")]
    return [(line["name"], line["step"]) for line in logged if line["workflow_id"] == job_id]


def _lasts_s(mesh: Mesh) -> float:
    """How long the steps of the first job took together."""
    lines = (mesh.data / "logs" / "jobs.log").read_text().splitlines()
    times = [datetime.fromisoformat(json.loads(line)["timestamp"]) for line in lines if '"job_step"' in line]
    return (times[-1] - times[0]).total_seconds()


def _finished(mesh: Mesh, job_id: str) -> set[Step]:
    with contextlib.closing(sqlite3.connect(mesh.data / "jobs.db", timeout=10)) as connection:
        query = "SELECT function_name, function_id FROM operation_outputs WHERE workflow_uuid = ?"
        return set(connection.execute(query, (job_id,)).fetchall())


def _passages(mesh: Mesh, dataset: str, status: dict[str, object]) -> Passages:
    """Content and vector of each passage by (document's name, ordinal)."""
    found: Passages = {}
    for row in stored(mesh, dataset):
        key = (row["name"], row["ordinal"])
        assert key not in found, f"{key} is there twice"
        found[key] = ({column: row[column] for column in CONTENT}, np.array(row["vector"], np.float32))
    assert str(len(found)) == str(status["chunks"]), (len(found), status)
    return found


def _differences(expected: Passages, found: Passages) -> list[str]:
    wrong = [f"{key}: only in one" for key in expected.keys() ^ found.keys()]
    for key in expected.keys() & found.keys():
        (content, vector), (other, other_vector) = expected[key], found[key]
        if content != other:
            wrong.append(f"{key}: other content")
        if not np.allclose(vector, other_vector, atol=1e-5):
            wrong.append(f"{key}: other vector")
    return wrong


def main() -> None:
    with fresh_mesh({"WEFT_LOG_LEVEL": "debug"}) as mesh:
        result = disturb(mesh, int(sys.argv[1]) if len(sys.argv) > 1 else 20)
    table(
        ["kills", "datasets", "passages of each", "finished steps at the kills", "run again", "differences"],
        [
            [
                result.kills,
                result.datasets,
                result.passages,
                result.finished,
                len(result.again),
                len(result.differences),
            ]
        ],
    )
    for line in [*map(str, result.again), *result.differences][:20]:
        print(line)


if __name__ == "__main__":
    main()

"""Passages indexed per second by a whole mesh, beside the bare embedding of the same texts.

    .venv/bin/python -m bench.indexing

Indexing is what comes after the document was parsed and cut into passages: from the beginning of the first
step that stores (the job process's log) until the status says "ready". Bare is one call of the same embedder
with the same texts and threads, at the same priority (the job process runs with nice 19), the model loaded
and warm. The two take turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench.setting import client, fresh_mesh, indexed, prose, spread, stored, table
from tests.servers.mesh import Mesh
from weftd.stores.passages.port import Passage, searchable

ROUNDS = 3
# Makes about 1,000 passages of some 200 tokens.
WORDS = 92_000
COLUMNS = ("dataset_id", "document_id", "ordinal", "name", "page", "heading", "content", "uploaded_at_ms")


def index(mesh: Mesh, rest: httpx.Client, dataset_id: str) -> tuple[float, float, int]:
    """Seconds to parse, seconds to index, and how many passages there are."""
    text = prose(seed=1, words=WORDS)
    rest.post(
        "/api/v1/knowledge/upload",
        data={"dataset_id": dataset_id},
        files={"file": ("report.txt", text.encode())},
    ).raise_for_status()
    job = rest.post("/api/v1/knowledge/index", json={"dataset_id": dataset_id}).raise_for_status().json()
    status = indexed(rest, dataset_id)
    ready_at = time.time()
    steps = [step for step in _steps(mesh) if step["workflow_id"] == job["job_id"]]
    begun = {
        name: next(_seconds(step) for step in steps if step["name"] == name) for name in ("parse", "store")
    }
    return begun["store"] - begun["parse"], ready_at - begun["store"], int(str(status["chunks"]))


def _steps(mesh: Mesh) -> list[dict[str, Any]]:
    lines = (mesh.data / "logs" / "jobs.log").read_text().splitlines()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in logged if line["event"] == "job_step"]


def _seconds(step: dict[str, Any]) -> float:
    return datetime.fromisoformat(step["timestamp"]).timestamp()


def bare(mesh: Mesh, file: Path) -> float:
    """Seconds that the embedder takes for the texts in `file`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.indexing", "bare", str(file)],
        env=mesh.environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return float(done.stdout)


async def embed(texts: list[str]) -> float:
    from weftd.compose_models import open_embedder
    from weftd.settings import Settings

    async with open_embedder(Settings()) as embedder:
        await embedder.embed(texts[:32])
        started = time.perf_counter()
        await embedder.embed(texts)
        return time.perf_counter() - started


def main() -> None:
    parsing: list[float] = []
    whole: list[float] = []
    alone: list[float] = []
    with (
        fresh_mesh({"WEFT_LOG_LEVEL": "debug"}) as mesh,
        client(mesh) as rest,
        tempfile.TemporaryDirectory() as scratch,
    ):
        index(mesh, rest, "warm")
        texts = [searchable(Passage(**{name: row[name] for name in COLUMNS})) for row in stored(mesh, "warm")]
        file = Path(scratch) / "texts.json"
        file.write_text(json.dumps(texts))
        alone.append(len(texts) / bare(mesh, file))
        for number in range(ROUNDS):
            parse_s, index_s, count = index(mesh, rest, f"round-{number}")
            assert count == len(texts)
            parsing.append(parse_s)
            whole.append(count / index_s)
            alone.append(len(texts) / bare(mesh, file))
            print(f"round {number + 1}: indexing {whole[-1]:.0f}/s, bare {alone[-1]:.0f}/s", file=sys.stderr)
    share = statistics.median(whole) / statistics.median(alone)
    table(
        ["passages", "parsing, s", "indexing, passages/s", "bare embedding, passages/s", "share"],
        [[len(texts), spread(parsing), spread(whole, ".0f"), spread(alone, ".0f"), f"{share:.0%}"]],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        os.nice(19)
        print(asyncio.run(embed(json.loads(Path(sys.argv[2]).read_text()))))
    else:
        main()

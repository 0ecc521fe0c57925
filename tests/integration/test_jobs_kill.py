"""The job process killed with -9: the index is the same as without, and no finished step runs again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
from pathlib import Path

import pytest

from tests.servers.knowledge import Knowledge, job_process, opened
from weft.v1 import knowledge_pb2 as pb
from weftd.stores.passages.port import Scope

# 20 in the bench and the nightly run.
KILLS = int(os.environ.get("WEFT_TEST_KILLS", "5"))
DOCUMENTS = {
    "long.md": "# Weaving\n\n" + "".join(f"The thread number {n} goes over the warp. " for n in range(6_000)),
    "short.txt": "A single sentence about looms.",
    "broken.pdf": "%PDF-1.7 no more than that",
    "second.txt": "".join(f"Line {n} tells how a shuttle is thrown. " for n in range(1_500)),
    "中文.txt": "梭子穿过经线。" * 300,
}


async def upload(knowledge: Knowledge, dataset_id: str) -> None:
    async def requests():  # type: ignore[no-untyped-def]
        for name, text in DOCUMENTS.items():
            yield pb.UploadRequest(header=pb.UploadHeader(dataset_id=dataset_id, name=name))
            yield pb.UploadRequest(data=text.encode())

    await knowledge.uploads.stream("acme", requests())


async def build(knowledge: Knowledge, dataset_id: str) -> None:
    options = pb.IndexOptions(chunk_size=64)
    await knowledge.catalogue.build_index(
        "acme", pb.BuildIndexRequest(dataset_id=dataset_id, options=options)
    )


async def finished(knowledge: Knowledge, dataset_id: str) -> pb.GetStatusResponse:
    while True:
        status = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id=dataset_id))
        if status.status not in ("pending", "indexing"):
            return status
        await asyncio.sleep(0.02)


async def indexed(knowledge: Knowledge, dataset_id: str) -> list[tuple[str, int, str, str]]:
    """All passages of a dataset, without the ids that hang on the dataset's own."""
    scope = Scope("acme", (dataset_id,))
    count = await knowledge.passages.count(scope)
    words = ["thread", "sentence", "shuttle", "梭子"]
    hits = [
        hit.passage
        for word in words
        for hit in await knowledge.passages.match(scope, "words-1", [word], 5000)
    ]
    assert len(hits) == count
    return sorted((p.name, p.ordinal, p.heading, p.content) for p in hits)


def finished_steps(database: Path) -> set[str]:
    """What DBOS holds for finished: `WORKFLOW STEP`."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT workflow_uuid, function_id FROM operation_outputs")
        return {f"{workflow} {step}" for workflow, step in rows}


def begun_steps(directory: Path) -> list[str]:
    log = directory / "steps.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.timeout(60 + 20 * KILLS)
async def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path) as knowledge:
        with job_process(tmp_path):
            await upload(knowledge, "whole")
            await build(knowledge, "whole")
            expected_status = await finished(knowledge, "whole")
            expected = await indexed(knowledge, "whole")
        assert expected_status.status == "ready"
        assert [error.name for error in expected_status.errors] == ["broken.pdf"]
        steps = len(begun_steps(tmp_path))
        assert steps > 8

        randomly = random.Random(7)
        await upload(knowledge, "killed")
        await build(knowledge, "killed")
        for kill in range(KILLS + 1):
            (tmp_path / "steps.log").unlink()
            already_done = finished_steps(tmp_path / "jobs.db")
            with job_process(tmp_path) as process:
                over = asyncio.create_task(finished(knowledge, "killed"))
                # Somewhere within one of the first steps; the last process may finish.
                target = randomly.randint(1, max(1, 2 * steps // KILLS)) if kill < KILLS else 10_000
                while len(begun_steps(tmp_path)) < target and not over.done():
                    await asyncio.sleep(0.005)
                await asyncio.sleep(randomly.random() * 0.1)
                process.kill()
                over.cancel()
            assert already_done.isdisjoint(begun_steps(tmp_path)), "a finished step ran again"
        status = await finished(knowledge, "killed")
        assert (status.status, status.chunks) == (expected_status.status, expected_status.chunks)
        assert [error.reason for error in status.errors] == [e.reason for e in expected_status.errors]
        assert await indexed(knowledge, "killed") == expected

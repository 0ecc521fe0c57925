"""Several job processes on one PostgreSQL: another finishes the jobs of one that dies, or seems to."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.integration.test_jobs_kill import build, finished, indexed, upload
from tests.servers.knowledge import Knowledge, job_process, opened
from tests.servers.postgres import Postgres, running_postgres

# A worker is dead after 5 s, is looked for every half second, and the other polls its queue.
TAKEN_OVER_WITHIN_S = 12


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with running_postgres() as running:
        yield running


@contextmanager
def job_processes(directory: Path, url: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two, by name."""
    with job_process(directory, url, "one") as one, job_process(directory, url, "two") as two:
        yield {"one": one, "two": two}


def begun(directory: Path, name: str) -> list[str]:
    log = directory / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


def done_steps(url: str) -> set[str]:
    """What DBOS holds for finished: `WORKFLOW STEP`."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT workflow_uuid, function_id FROM dbos.operation_outputs"))
        return {f"{workflow} {step}" for workflow, step in rows}


async def begins(directory: Path, steps: int) -> str:
    """Waits until the processes together have begun so many steps; the one that began the newest."""
    async with asyncio.timeout(60):
        while True:
            counts = {name: len(begun(directory, name)) for name in ("one", "two")}
            if max(counts.values()) >= steps:
                return max(counts, key=lambda name: counts[name])
            await asyncio.sleep(0.002)


async def whole(knowledge: Knowledge) -> list[tuple[str, int, str, str]]:
    await upload(knowledge, "whole")
    await build(knowledge, "whole")
    assert (await finished(knowledge, "whole")).status == "ready"
    return await indexed(knowledge, "whole")


@pytest.mark.timeout(150)
async def test_another_process_finishes_what_a_killed_one_began(tmp_path: Path, server: Postgres) -> None:
    url = server.database()
    async with opened(tmp_path, records_url=url) as knowledge:
        with job_processes(tmp_path, url) as processes:
            await upload(knowledge, "killed")
            await build(knowledge, "killed")
            victim = await begins(tmp_path, 5)
            other = "two" if victim == "one" else "one"
            processes[victim].kill()
            already_done, begun_before = done_steps(url), begun(tmp_path, other)
            killed_at = time.monotonic()
            while begun(tmp_path, other) == begun_before:
                assert time.monotonic() - killed_at < TAKEN_OVER_WITHIN_S
                await asyncio.sleep(0.02)
            status = await finished(knowledge, "killed")
            assert status.status == "ready"
            assert already_done.isdisjoint(begun(tmp_path, other)), "a finished step ran again"
            assert await indexed(knowledge, "killed") == await whole(knowledge)


@pytest.mark.timeout(150)
async def test_one_that_is_started_again_goes_on_with_its_own(tmp_path: Path, server: Postgres) -> None:
    url = server.database()
    async with opened(tmp_path, records_url=url) as knowledge:
        with job_process(tmp_path, url, "one") as process:
            await upload(knowledge, "killed")
            await build(knowledge, "killed")
            await begins(tmp_path, 5)
            process.kill()
        already_done = done_steps(url)
        with job_process(tmp_path, url, "two"):
            async with asyncio.timeout(60):
                status = await finished(knowledge, "killed")
            assert status.status == "ready"
            assert already_done.isdisjoint(begun(tmp_path, "two")), "a finished step ran again"
            assert await indexed(knowledge, "killed") == await whole(knowledge)


@pytest.mark.timeout(150)
async def test_one_that_was_only_stopped_does_no_harm(tmp_path: Path, server: Postgres) -> None:
    url = server.database()
    async with opened(tmp_path, records_url=url) as knowledge:
        with job_processes(tmp_path, url) as processes:
            await upload(knowledge, "stopped")
            await build(knowledge, "stopped")
            sleeper = await begins(tmp_path, 7)
            os.kill(processes[sleeper].pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(60):
                    assert (await finished(knowledge, "stopped")).status == "ready"
            finally:
                os.kill(processes[sleeper].pid, signal.SIGCONT)
            # It learns that it was given up, and ends to start anew.
            async with asyncio.timeout(20):
                while not (tmp_path / "anew.log").exists():
                    await asyncio.sleep(0.05)
            status = await finished(knowledge, "stopped")
            assert status.status == "ready"
            assert await indexed(knowledge, "stopped") == await whole(knowledge)

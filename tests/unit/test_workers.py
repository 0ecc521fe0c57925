"""Workers that are kept running and exchanged, without processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from weftd.settings import Settings
from weftd.supervisor import Child, ChildFailed
from weftd.workers import Worker, Workers


class ScriptedChild:
    """Counts its processes; waits in its back-off until `go_on`."""

    name = "one"

    def __init__(self) -> None:
        self.running = 0
        self.failure: Exception | None = None
        self.starts = asyncio.Event()
        self.starts.set()
        self.died = asyncio.Event()
        self.go_on = asyncio.Event()

    async def start(self) -> None:
        await self.starts.wait()
        if self.failure is not None:
            raise self.failure
        self.died.clear()
        self.running += 1

    async def keep(self) -> None:
        while True:
            await self.died.wait()
            await self.go_on.wait()
            await self.start()

    async def stop(self, _grace_s: float) -> None:
        self.running = 0

    def die(self) -> None:
        self.running = 0
        self.died.set()


@asynccontextmanager
async def kept(child: ScriptedChild) -> AsyncIterator[tuple[Workers, asyncio.Task[None]]]:
    """The workers, and the task that keeps them running."""
    worker = Worker(cast("Child", child), Settings(data=Path("unused")))
    workers = Workers(1, lambda _slot: worker, 0)

    async def keep() -> None:
        async with asyncio.TaskGroup() as keepers:
            await workers.start(keepers, lambda _name: None)
            await asyncio.Event().wait()

    keeping = asyncio.create_task(keep())
    await settle()
    yield workers, keeping
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_worker_that_is_restarted_in_its_back_off_runs_once() -> None:
    child, said = ScriptedChild(), list[str]()
    async with kept(child) as (workers, _):
        child.die()
        await settle()
        await workers.restart(said.append)
        child.go_on.set()
        await settle()
        assert child.running == 1
        assert said == ["one"]


async def test_one_that_does_not_start_again_is_tried_again() -> None:
    child, said = ScriptedChild(), list[str]()
    async with kept(child) as (workers, _):
        child.failure = ChildFailed("no port")
        with pytest.raises(ChildFailed):
            await workers.restart(said.append)
        child.failure = None
        child.die()
        child.go_on.set()
        await settle()
        assert child.running == 1


async def test_an_end_in_the_midst_of_a_restart_is_no_fault() -> None:
    child = ScriptedChild()
    async with kept(child) as (workers, keeping):
        child.starts.clear()
        restarting = asyncio.create_task(workers.restart(lambda _name: None))
        await settle()
        keeping.cancel()
        restarting.cancel()
        await asyncio.wait([restarting])
        assert restarting.cancelled()


async def test_a_program_that_cannot_be_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no directory")
    with pytest.raises(ChildFailed, match="one cannot be run"):
        await Child("one", ["--help"], {}, tmp_path / "logs" / "one.log").start()


def test_what_a_program_says_last_begins_with_its_message(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_text(
        '{"event": "no_reranker"}\n✗ WEFT_LLM=/x: it has no config.json.\nName another.\n', "utf-8"
    )
    assert Child("one", [], {}, log)._last_words(0, 1).startswith("✗ WEFT_LLM=/x")
    log.write_text("Traceback\nMemoryError\n")
    assert Child("one", [], {}, log)._last_words(0, 1) == "Traceback\nMemoryError"

"""A step of an index job that runs again: after a kill before it was recorded, or beside another worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.knowledge import Knowledge, WordEmbedder, opened
from weft.v1 import knowledge_pb2 as pb
from weftd.knowledge.index_steps import IndexSteps, batches
from weftd.knowledge.job_worker import GivenUp, JobWorker
from weftd.knowledge.parsing.section import Limits
from weftd.knowledge.passage_writer import PassageWriter
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Scope
from weftd.stores.records import workers

LONG = "".join(f"The thread number {n} goes over the warp. " for n in range(3_000))


async def index(knowledge: Knowledge, dataset_id: str, *, times: int) -> list[tuple[str, int, str]]:
    """Runs every step so often; the passages that are searchable in the end."""
    await _run(knowledge, await _begin(knowledge, dataset_id), times=times)
    return await _found(knowledge, dataset_id)


async def _begin(knowledge: Knowledge, dataset_id: str) -> str:
    async def requests() -> AsyncIterator[pb.UploadRequest]:
        for name, text in {"long.txt": LONG, "short.txt": "One thread."}.items():
            yield pb.UploadRequest(header=pb.UploadHeader(dataset_id=dataset_id, name=name))
            yield pb.UploadRequest(data=text.encode())

    await knowledge.uploads.stream("acme", requests())
    options = pb.IndexOptions(chunk_size=64)
    request = pb.BuildIndexRequest(dataset_id=dataset_id, options=options)
    return (await knowledge.catalogue.build_index("acme", request)).job_id


async def _run(knowledge: Knowledge, job_id: str, *, times: int) -> None:
    worker = JobWorker(knowledge.records)
    await worker.begin()
    steps = knowledge.steps(worker)
    while groups := await steps.plan(job_id):
        for group in groups:
            for _ in range(times):
                counts = await steps.parse(job_id, group)
            for batch in batches(zip(group, counts, strict=True)):
                for _ in range(times):
                    await steps.store(job_id, batch)


async def _found(knowledge: Knowledge, dataset_id: str) -> list[tuple[str, int, str]]:
    hits = await knowledge.passages.match(Scope("acme", (dataset_id,)), "words-1", ["thread"], 5000)
    return sorted((hit.passage.name, hit.passage.ordinal, hit.passage.content) for hit in hits)


async def test_steps_may_be_run_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as knowledge:
        once = await index(knowledge, "once", times=1)
        assert len(once) > 200
        assert await index(knowledge, "twice", times=2) == once
        for dataset_id in ("once", "twice"):
            status = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id=dataset_id))
            assert (status.status, status.chunks) == ("ready", len(once))


class _Sleepy(LancePassages):
    """Its worker is taken for dead in the middle of a write."""

    given_up: Callable[[], Awaitable[None]]

    async def put(self, *arguments: Any) -> None:
        await super().put(*arguments)
        await self.given_up()


async def test_what_a_worker_wrote_that_was_given_up_is_indexed_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as knowledge:
        expected = await index(knowledge, "expected", times=1)
        sleeper = JobWorker(knowledge.records)
        await sleeper.begin()
        sleepy = await _Sleepy.connect(tmp_path / "passages")

        async def finished_by_another() -> None:
            await knowledge.records.write(lambda connection: workers.give_up(connection, sleeper.id, 0))
            await _run(knowledge, job_id, times=1)

        sleepy.given_up = finished_by_another
        writer = PassageWriter([sleepy])
        steps = IndexSteps(knowledge.records, knowledge.blobs, writer, WordEmbedder(), Limits(), sleeper)
        job_id = await _begin(knowledge, "given-up")
        (group,) = await steps.plan(job_id)
        first, *_ = batches(zip(group, await steps.parse(job_id, group), strict=True))
        with pytest.raises(GivenUp):
            await steps.store(job_id, first)
        status = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id="given-up"))
        assert status.status != "ready", "nobody looks at what was written last"
        await _run(knowledge, job_id, times=1)
        assert await _found(knowledge, "given-up") == expected
        with pytest.raises(GivenUp):
            await steps.fail(job_id, "INTERNAL", "It is not its job to say so.")
        status = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id="given-up"))
        assert (status.status, status.chunks) == ("ready", len(expected))
        await sleepy.close()

"""A step of an index job that is run again, as after a kill between its end and the record of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from tests.servers.knowledge import Knowledge, opened
from weft.v1 import knowledge_pb2 as pb
from weftd.knowledge.index_steps import batches
from weftd.knowledge.job_worker import JobWorker
from weftd.stores.passages.port import Scope

LONG = "".join(f"The thread number {n} goes over the warp. " for n in range(3_000))


async def index(knowledge: Knowledge, dataset_id: str, *, times: int) -> list[tuple[str, int, str]]:
    """Runs every step so often; the passages that are searchable in the end."""

    async def requests() -> AsyncIterator[pb.UploadRequest]:
        for name, text in {"long.txt": LONG, "short.txt": "One thread."}.items():
            yield pb.UploadRequest(header=pb.UploadHeader(dataset_id=dataset_id, name=name))
            yield pb.UploadRequest(data=text.encode())

    await knowledge.uploads.stream("acme", requests())
    options = pb.IndexOptions(chunk_size=64)
    request = pb.BuildIndexRequest(dataset_id=dataset_id, options=options)
    job_id = (await knowledge.catalogue.build_index("acme", request)).job_id
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

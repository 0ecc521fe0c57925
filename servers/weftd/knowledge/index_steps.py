"""The steps of an index job. Each may be run again, from its beginning, and then does the same.

A worker that was taken for dead may still be in the middle of a step. So it looks whether it still holds its
jobs before it writes passages, to write nothing, and after, to have them written again.

Texts never travel from step to step, because a workflow keeps what its steps return: parsing writes the
passages of a document beside its bytes in the blob store, and storing reads them there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
import structlog

from weftd.errors import FailedPrecondition, reason_name
from weftd.inference.port import Embedder
from weftd.knowledge.chunking import Chunker
from weftd.knowledge.job_worker import GivenUp, JobWorker
from weftd.knowledge.parsing.runner import parse_document
from weftd.knowledge.parsing.section import BROKEN, Limits, Section
from weftd.knowledge.passage_writer import PassageWriter
from weftd.stores.blobs.port import Blobs, BlobWriter
from weftd.stores.passages.port import Passage, searchable
from weftd.stores.records import documents, index_jobs
from weftd.stores.records.engine import Records
from weftd.stores.records.index_jobs import IndexJob

__all__ = ["IndexSteps", "Slice", "batches"]

# Passages that are embedded and stored in one step: what a killed job does again at most.
_BATCH = 128
# Documents that are parsed in one step.
_GROUP_DOCUMENTS = 32
_GROUP_BYTES = 8 << 20
# Documents that are parsed at once; most of the time of a small one is the start of its process.
_PARSERS = 2
# Counts up when parsing or chunking change what comes out: every document is then indexed anew.
_FORMAT = 1

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Slice:
    """The passages `start` to `stop` of a document, `stop` not among them."""

    document_id: str
    start: int
    stop: int


def batches(counts: Iterator[tuple[str, int]]) -> Iterator[list[Slice]]:
    """Cuts documents, given as (document_id, passages), into lists of slices of one batch each."""
    batch: list[Slice] = []
    room = _BATCH
    for document_id, total in counts:
        start = 0
        while start < total:
            stop = min(total, start + room)
            batch.append(Slice(document_id, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield batch
                batch, room = [], _BATCH
    if batch:
        yield batch


class IndexSteps:
    def __init__(
        self,
        records: Records,
        blobs: Blobs,
        passages: PassageWriter,
        embedder: Embedder,
        limits: Limits,
        worker: JobWorker,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._passages = passages
        self._embedder = embedder
        self._limits = limits
        self._worker = worker

    async def plan(self, job_id: str) -> list[list[str]]:
        """Ids of the documents that are left to index, in groups to parse. None left: the job is done."""
        job = await self._job(job_id)
        if job is None:
            return []
        model_id, fingerprint = self._embedder.model_id, self._fingerprint(job)
        todo = await self._records.write(
            lambda connection: index_jobs.plan(connection, job_id, model_id, fingerprint)
        )
        groups: list[list[str]] = []
        room = 0
        for document_id, size in todo:
            if room < size or len(groups[-1]) == _GROUP_DOCUMENTS:
                groups.append([])
                room = max(_GROUP_BYTES, size)
            groups[-1].append(document_id)
            room -= size
        return groups

    async def parse(self, job_id: str, document_ids: Sequence[str]) -> list[int]:
        """Writes down the passages of these documents; returns how many each has, 0 where refused or gone."""
        job = await self._job(job_id)
        if job is None:
            return [0] * len(document_ids)
        rows = await self._live(job, document_ids)
        counts = dict.fromkeys(document_ids, 0)
        left = iter(rows.values())

        async def parse_some() -> None:
            for row in left:
                counts[row.document_id] = await self._parse(job, row)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_PARSERS):
                    group.create_task(parse_some())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [counts[each] for each in document_ids]

    async def store(self, job_id: str, slices: Sequence[Slice]) -> None:
        """Embeds these passages and makes them searchable."""
        job = await self._job(job_id)
        if job is None:
            return
        rows = await self._live(job, [each.document_id for each in slices])
        # Passages of another model or other options than the rest would have: planned again in the end.
        slices = [each for each in slices if self._is_ours(job, rows.get(each.document_id))]
        slices, passages = await self._read_all(job, rows, slices)
        vectors = await self._embed([searchable(each) for each in passages])
        async with self._passages.alone():
            live = await self._live(job, list(rows))
            kept = [number for number, each in enumerate(passages) if each.document_id in live]
            begun = [each.document_id for each in slices if each.start == 0]
            await self._passages.delete(job.tenant, job.dataset_id, begun)
            if kept:
                some = [passages[number] for number in kept]
                await self._passages.put(job.tenant, self._embedder.model_id, some, vectors[kept])
            gone = await self._note(job, list(rows), partial(_stored, tenant=job.tenant, slices=slices))
            # Deleted by another process while this one wrote.
            await self._passages.delete(job.tenant, job.dataset_id, gone)
        for each in slices:
            row = rows[each.document_id]
            if each.stop == row.passages or each.document_id in gone:
                await self._drop_spool(job, row.blob)

    async def compact(self, tenant: str) -> None:
        async with self._passages.alone():
            await self._passages.compact(tenant)

    async def fail(self, job_id: str, reason: str, message: str) -> None:
        """The job as a whole cannot go on."""

        def operation(connection: sa.Connection) -> bool:
            holds = self._worker.holds(connection)
            if holds:
                index_jobs.fail(connection, job_id, reason, message)
            return holds

        if not await self._records.write(operation, durable=True):
            raise GivenUp

    async def tenant(self, job_id: str) -> str:
        """Whose job it is; empty where the job has ended."""
        job = await self._job(job_id)
        return job.tenant if job else ""

    async def _job(self, job_id: str) -> IndexJob | None:
        return await self._records.read(lambda connection: index_jobs.start(connection, job_id))

    async def _live(self, job: IndexJob, document_ids: Sequence[str]) -> dict[str, Any]:
        """The documents that were not deleted, for a worker that still holds its jobs."""

        def operation(connection: sa.Connection) -> dict[str, Any] | None:
            return (
                documents.live(connection, job.tenant, document_ids)
                if self._worker.holds(connection)
                else None
            )

        live = await self._records.read(operation)
        if live is None:
            raise GivenUp
        return live

    async def _note(
        self, job: IndexJob, document_ids: Sequence[str], result: Callable[[sa.Connection], T]
    ) -> T:
        """Records what was done to these documents, where this worker still holds its jobs."""

        def operation(connection: sa.Connection) -> tuple[T] | None:
            if self._worker.holds(connection):
                return (result(connection),)
            index_jobs.again(connection, job.tenant, document_ids)
            return None

        noted = await self._records.write(operation)
        if noted is None:
            log.warning("written_after_given_up", job_id=job.job_id, documents=len(document_ids))
            raise GivenUp
        return noted[0]

    def _fingerprint(self, job: IndexJob) -> str:
        return f"{self._embedder.model_id}/{job.chunk_size}/{job.overlap}/{_FORMAT}"

    def _is_ours(self, job: IndexJob, row: Any | None) -> bool:
        return row is not None and row.fingerprint == self._fingerprint(job) and row.status != "refused"

    async def _parse(self, job: IndexJob, row: Any) -> int:
        fingerprint = self._fingerprint(job)
        try:
            count = await self._spool(job, row)
        except FailedPrecondition as refusal:
            reason, message = reason_name(refusal.reason), refusal.message
        except FileNotFoundError:
            log.error("blob_missing", document_id=row.document_id)
            reason, message = "DOCUMENT_BROKEN", BROKEN
        else:
            parsed = partial(
                documents.parsed,
                tenant=job.tenant,
                document_id=row.document_id,
                fingerprint=fingerprint,
                passages=count,
            )
            still_there = await self._note(job, [row.document_id], parsed)
            if not still_there:
                await self._drop_spool(job, row.blob)
            return count if still_there else 0
        await self._live(job, [row.document_id])
        await self._passages.delete(job.tenant, job.dataset_id, [row.document_id])
        refused = partial(
            documents.refused,
            tenant=job.tenant,
            document_id=row.document_id,
            fingerprint=fingerprint,
            reason=reason,
            message=message,
        )
        await self._note(job, [row.document_id], refused)
        log.info("document_refused", document_id=row.document_id, reason=reason)
        return 0

    async def _spool(self, job: IndexJob, row: Any) -> int:
        """Parses the document and writes its passages beside it; returns how many. FailedPrecondition."""
        chunker = Chunker(self._embedder.token_spans, job.chunk_size, job.overlap)
        writer = await asyncio.to_thread(self._blobs.create, job.tenant, of=row.blob)
        try:
            count = 0
            with self._blobs.open(job.tenant, row.blob) as path:
                async with aclosing(parse_document(path, row.name, self._limits)) as sections:
                    async for section in sections:
                        count += await asyncio.to_thread(_chunk, writer, chunker, section)
            count += await asyncio.to_thread(_chunk, writer, chunker, None)
            await asyncio.to_thread(writer.publish)
            return count
        finally:
            await asyncio.to_thread(writer.abort)

    async def _read_all(
        self, job: IndexJob, rows: dict[str, Any], slices: Sequence[Slice]
    ) -> tuple[list[Slice], list[Passage]]:
        """The slices whose passages are still there, and these."""
        found: list[Slice] = []
        passages: list[Passage] = []
        for each in slices:
            # Where they are not, this step was killed after it had finished with the document. A document
            # that is not searchable whole for all that is planned, and so parsed, again in the end.
            with contextlib.suppress(FileNotFoundError):
                passages += await asyncio.to_thread(self._read, job, rows[each.document_id], each)
                found.append(each)
        return found, passages

    def _read(self, job: IndexJob, row: Any, piece: Slice) -> list[Passage]:
        with (
            self._blobs.open(job.tenant, row.blob, companion=True) as path,
            path.open(encoding="utf-8") as lines,
        ):
            chunks = [json.loads(line) for line in islice(lines, piece.start, piece.stop)]
        return [
            Passage(
                dataset_id=job.dataset_id,
                document_id=row.document_id,
                ordinal=ordinal,
                name=row.name,
                page=page,
                heading=heading,
                content=content,
                uploaded_at_ms=row.uploaded_at_ms,
            )
            for ordinal, (page, heading, content) in enumerate(chunks, piece.start)
        ]

    async def _embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One vector for each text; zeros, which are near nothing, where the model lacks the language."""
        vectors = np.zeros((len(texts), self._embedder.dim), np.float32)
        known = [number for number, text in enumerate(texts) if self._embedder.supports(text)]
        if known:
            vectors[known] = await self._embedder.embed([texts[number] for number in known])
        return vectors

    async def _drop_spool(self, job: IndexJob, blob: str) -> None:
        await asyncio.to_thread(self._blobs.delete, job.tenant, blob, companion_only=True)


def _chunk(writer: BlobWriter, chunker: Chunker, section: Section | None) -> int:
    """Writes the passages that a section (None: the end) completes; returns how many."""
    chunks = chunker.finish() if section is None else chunker.add(section)
    lines = (json.dumps([each.page, each.heading, each.content], ensure_ascii=False) for each in chunks)
    writer.write("".join(f"{line}\n" for line in lines).encode())
    return len(chunks)


def _stored(connection: Any, tenant: str, slices: Sequence[Slice]) -> list[str]:
    """Records what is searchable now; returns the documents that were deleted meanwhile."""
    return [
        each.document_id
        for each in slices
        if not documents.stored_passages(connection, tenant, each.document_id, each.stop)
    ]

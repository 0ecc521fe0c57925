"""The steps that remove every trace of deleted documents. Each may be run again."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from weftd.knowledge.passage_writer import PassageWriter
from weftd.stores.blobs.port import Blobs
from weftd.stores.records import index_jobs
from weftd.stores.records.conversations import forget_references
from weftd.stores.records.engine import Records
from weftd.stores.records.index_jobs import Purge

__all__ = ["PurgeSteps"]

_IDS = 500

log = structlog.get_logger()


class PurgeSteps:
    def __init__(self, records: Records, blobs: Blobs, passages: PassageWriter) -> None:
        self._records = records
        self._blobs = blobs
        self._passages = passages

    async def passages(self, purge_id: str) -> None:
        """Takes the passages out of the index, and their bytes off the disk."""
        purge = await self._purge(purge_id)
        if purge is None or not purge.documents:
            return
        async with self._passages.alone():
            ids = [document_id for document_id, _ in purge.documents]
            await self._passages.delete(purge.tenant, purge.dataset_id, ids)
            if await self._purge(purge_id) is None:
                # Another worker took this one for dead and finished; the ids may be of new documents by now.
                await self._records.write(lambda connection: index_jobs.again(connection, purge.tenant, ids))
            await self._passages.compact(purge.tenant, erase=True)

    async def references(self, purge_id: str) -> None:
        """Takes what answers quote out of the conversations."""
        purge = await self._purge(purge_id)
        if purge is None:
            return
        ids = [document_id for document_id, _ in purge.documents]
        for first in range(0, len(ids), _IDS):
            some = ids[first : first + _IDS]
            forget = partial(
                forget_references, tenant=purge.tenant, dataset_id=purge.dataset_id, document_ids=some
            )
            while await self._records.write(forget):
                pass

    async def files(self, purge_id: str) -> None:
        """Removes the files, then the records that were kept until now."""
        purge = await self._purge(purge_id)
        if purge is None:
            return
        for _, blob in purge.documents:
            await asyncio.to_thread(self._blobs.delete, purge.tenant, blob)
        await self._records.write(
            lambda connection: index_jobs.finished_purge(connection, purge_id), durable=True
        )
        await self._records.read(index_jobs.empty_log)
        log.info("purged", dataset_id=purge.dataset_id, documents=len(purge.documents))

    async def _purge(self, purge_id: str) -> Purge | None:
        return await self._records.read(lambda connection: index_jobs.purge(connection, purge_id))

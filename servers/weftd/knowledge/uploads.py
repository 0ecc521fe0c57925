"""Uploads: from a stream of pieces to documents that are on disk and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import partial
from typing import Protocol, TypeVar

import sqlalchemy as sa
import structlog

from weft.v1 import error_reason_pb2, knowledge_pb2
from weftd.errors import InvalidArgument, ResourceExhausted, Unavailable
from weftd.knowledge.form import Form, malformed
from weftd.knowledge.ids import check_dataset_id, new_dataset_id
from weftd.knowledge.intake import IncomingFile, Intake, UploadLimits
from weftd.knowledge.memory import return_large_blocks
from weftd.rpc.incoming import in_time, on_thread
from weftd.rpc.tenants import TenantCounts
from weftd.stores.blobs.port import Blobs, BlobWriter
from weftd.stores.records import documents
from weftd.stores.records.documents import StoredFile
from weftd.stores.records.engine import Records

__all__ = ["Piece", "Uploads"]

# Pieces are gathered to this size: each hand-over to a thread costs as much as writing 100 KiB.
_GATHER_BYTES = 256 << 10
_PIECE_LIMIT_BYTES = 1 << 20
# Between two pieces. Whoever sends nothing keeps one of the places from others.
_SILENCE_LIMIT_S = 60.0
# Records that went away come back: an upload that is whole waits for them so long.
_STORE_PATIENCE_S = 15.0
_STORE_PAUSE_S = 0.5

T = TypeVar("T")

log = structlog.get_logger()


class Piece(Protocol):
    """google.api.HttpBody."""

    @property
    def content_type(self) -> str: ...
    @property
    def data(self) -> bytes: ...


class Uploads:
    """Takes uploads. All files of one are recorded in one commit, or none where it was cut off."""

    def __init__(self, records: Records, blobs: Blobs, limits: UploadLimits) -> None:
        self._records = records
        self._blobs = blobs
        self._limits = limits
        self._running = 0
        self._running_of = TenantCounts()
        # Files of uploads whose commit had an unknown outcome. Nothing is taken in while there are any.
        self._unsettled: list[BlobWriter] = []
        self._settling = asyncio.Lock()
        return_large_blocks()

    async def recover(self) -> None:
        """Settles what uploads left behind whose process died. Call it once, at the start."""
        loop = asyncio.get_running_loop()

        def is_known(key: str) -> bool:
            read = self._records.read(lambda connection: documents.blob_known(connection, key))
            return asyncio.run_coroutine_threadsafe(read, loop).result()

        await asyncio.to_thread(self._blobs.recover, is_known)

    async def stream(
        self, tenant: str, requests: AsyncIterable[knowledge_pb2.UploadRequest]
    ) -> knowledge_pb2.UploadResponse:
        """An upload by messages; see `KnowledgeService.Upload`."""
        async with self._intake(tenant) as intake:
            dataset_id: str | None = None
            async for request in _in_time(requests):
                if request.WhichOneof("kind") == "header":
                    header = request.header
                    if dataset_id is None:
                        dataset_id = header.dataset_id
                    elif header.dataset_id not in ("", dataset_id):
                        raise InvalidArgument({"header.dataset_id": "differs from the one of the first file"})
                    await _on_thread(partial(_next_file, intake, header.name))
                elif len(request.data) > _PIECE_LIMIT_BYTES:
                    raise InvalidArgument({"data": "is longer than 1 MiB: send it in pieces"})
                else:
                    await _on_thread(partial(intake.data, request.data))
            if dataset_id is None:
                raise malformed("without a file")
            await _on_thread(intake.end_file)
            return await self._keep(tenant, dataset_id, intake)

    async def form(self, tenant: str, pieces: AsyncIterable[Piece]) -> knowledge_pb2.UploadResponse:
        """An upload as a multipart form; the first piece has its content type."""
        async with self._intake(tenant) as intake:
            form: Form | None = None
            gathered: list[bytes] = []
            size = 0
            async for piece in _in_time(pieces):
                if form is None:
                    form = Form(piece.content_type, intake)
                if not piece.data:
                    continue
                gathered.append(piece.data)
                size += len(gathered[-1])
                if size >= _GATHER_BYTES:
                    await _on_thread(partial(form.feed, b"".join(gathered)))
                    gathered.clear()
                    size = 0
            if form is None:
                raise malformed("empty")
            await _on_thread(partial(form.feed, b"".join(gathered)))
            return await self._keep(tenant, form.finish(), intake)

    @contextlib.asynccontextmanager
    async def _intake(self, tenant: str) -> AsyncIterator[Intake]:
        limits = self._limits
        if self._running >= limits.uploads or self._running_of.of(tenant) >= limits.tenant_uploads:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                "Too many uploads run at once. Try again in a moment.",
                retry_after_s=5,
            )
        self._running += 1
        self._running_of.began(tenant)
        intake = Intake(self._blobs, tenant, self._limits)
        try:
            await self._settle()
            yield intake
        finally:
            self._running -= 1
            self._running_of.ended(tenant)
            await asyncio.shield(asyncio.to_thread(intake.abort))

    async def _settle(self) -> None:
        """Finishes what waits for the records to answer. Unavailable where they still do not."""
        async with self._settling:
            while self._unsettled:
                writer = self._unsettled[-1]
                known = await self._records.read(partial(documents.blob_known, blob=writer.key))
                self._unsettled.pop()
                try:
                    await _on_thread(writer.publish if known else writer.abort)
                except Unavailable:
                    self._unsettled.append(writer)
                    raise

    async def _commit(self, add: Callable[[sa.Connection], T]) -> T:
        """Goes on for a while when the records do not answer: the bytes are here, they are worth a wait."""
        give_up_at = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                return await self._records.write(add, durable=True)
            except Unavailable:
                if time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(_STORE_PAUSE_S)

    async def _keep(self, tenant: str, dataset_id: str, intake: Intake) -> knowledge_pb2.UploadResponse:
        """Records the files and puts them in their places. Goes through with it when cancelled."""
        if dataset_id:
            check_dataset_id(dataset_id)
        keeping = asyncio.ensure_future(self._record(tenant, dataset_id or new_dataset_id(), intake.files))
        try:
            return await asyncio.shield(keeping)
        except asyncio.CancelledError:
            await asyncio.wait([keeping])
            raise

    async def _record(
        self, tenant: str, dataset_id: str, files: list[IncomingFile]
    ) -> knowledge_pb2.UploadResponse:
        kept = [file for file in files if file.writer is not None]
        stored = [StoredFile(f.name, f.sha256, f.size, f.writer.key) for f in kept if f.writer is not None]
        now_ms = time.time_ns() // 1_000_000

        def add(connection: sa.Connection) -> list[tuple[str, bool]]:
            return documents.add(connection, tenant, dataset_id, stored, now_ms)

        try:
            added = await self._commit(add)
        except Unavailable:
            # Perhaps it was recorded: the bytes stay until the records can be asked.
            for file in kept:
                if file.writer is not None:
                    self._unsettled.append(file.writer)
                    file.writer = None
            raise
        new = []
        for file, (_, is_new) in zip(kept, added, strict=True):
            if file.writer is not None and is_new:
                new.append(file.writer)
                file.writer = None  # recorded: nothing takes it back now, `recover` finishes it if need be
        await _on_thread(partial(_publish, new))
        log.info("uploaded", dataset_id=dataset_id, files=len(files), stored=len(new))
        outcome = iter(added)
        return knowledge_pb2.UploadResponse(
            dataset_id=dataset_id,
            documents=[_answer(file, None if file.refusal else next(outcome)) for file in files],
        )


def _in_time(pieces: AsyncIterable[T]) -> AsyncIterator[T]:
    """The pieces as they come. UPLOAD_MALFORMED where the next one does not come in time."""
    late = malformed(f"cut off: nothing came for {_SILENCE_LIMIT_S:g} seconds")
    return in_time(pieces, _SILENCE_LIMIT_S, late)


def _answer(file: IncomingFile, added: tuple[str, bool] | None) -> knowledge_pb2.UploadedDocument:
    answer = knowledge_pb2.UploadedDocument(name=file.name, bytes=min(file.size, 0xFFFFFFFF))
    if added is not None:
        answer.document_id, is_new = added
        answer.status = "stored" if is_new else "duplicate"
    elif file.refusal is not None:
        answer.status = "refused"
        answer.error.reason, answer.error.message = file.refusal
    return answer


def _publish(writers: list[BlobWriter]) -> None:
    for writer in writers:
        writer.publish()


def _next_file(intake: Intake, name: str) -> None:
    intake.end_file()
    intake.begin_file(name)


async def _on_thread(work: Callable[[], object]) -> None:
    try:
        await on_thread(work)
    except OSError as error:
        raise Unavailable(
            error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
            "The server cannot write files now. Try again later, or have its disk looked at.",
            metadata={"backend": "blobs"},
        ) from error

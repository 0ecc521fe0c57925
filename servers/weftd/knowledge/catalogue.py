"""Datasets and documents as callers see them: make, list, look at, index, delete."""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy as sa
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import error_reason_pb2, knowledge_pb2
from weftd.errors import AlreadyExists, InvalidArgument, Unavailable, Unimplemented
from weftd.knowledge.ids import (
    check_dataset_id,
    new_dataset_id,
    page_size,
    page_token,
    read_page_token,
)
from weftd.knowledge.passage_writer import PassageWriter
from weftd.stores.records import datasets, documents, index_jobs
from weftd.stores.records import knowledge_requests as requests
from weftd.stores.records.datasets import DatasetState
from weftd.stores.records.engine import Records

__all__ = ["Catalogue"]

_NAME_LIMIT = 200
_REQUEST_ID_LIMIT = 128
_ERRORS_LISTED = 1000
_DEFAULT_CHUNK_SIZE = 256
_CHUNK_SIZES = range(32, 2049)

log = structlog.get_logger()


class Catalogue:
    """Answers and changes in the contract's messages; the job process does what takes time."""

    def __init__(self, records: Records, passages: PassageWriter) -> None:
        self._records = records
        self._passages = passages

    async def create(self, tenant: str, request: knowledge_pb2.CreateDatasetRequest) -> knowledge_pb2.Dataset:
        """AlreadyExists DATASET_EXISTS."""
        name = request.name.strip()
        if len(name) > _NAME_LIMIT or not name.isprintable():
            raise InvalidArgument({"name": f"must be at most {_NAME_LIMIT} characters, on one line"})
        if request.dataset_id:
            check_dataset_id(request.dataset_id)
        _check_request_id(request.request_id)
        dataset_id = request.dataset_id or _id_for(tenant, request.request_id)
        asked = requests.digest("create", request.dataset_id, name)
        now_ms = _now_ms()

        def was_asked(connection: sa.Connection) -> bool:
            return bool(request.request_id) and bool(
                requests.recall(connection, tenant, request.request_id, asked)
            )

        def write(connection: sa.Connection) -> DatasetState:
            if was_asked(connection):
                return datasets.state(connection, tenant, dataset_id)
            if not datasets.create(connection, tenant, dataset_id, name or dataset_id, now_ms):
                if was_asked(connection):  # by the same call, in another process, just now
                    return datasets.state(connection, tenant, dataset_id)
                raise AlreadyExists(
                    error_reason_pb2.ERROR_REASON_DATASET_EXISTS,
                    f"There is a dataset {dataset_id} already. Use it, or choose another id.",
                    metadata={"dataset_id": dataset_id},
                )
            if request.request_id:
                key = (connection, tenant, request.request_id, asked)
                requests.remember(*key, dataset_id=dataset_id, answer=dataset_id, now_ms=now_ms)
            return datasets.state(connection, tenant, dataset_id)

        return _dataset(await self._records.write(write, durable=True))

    async def list_datasets(
        self, tenant: str, request: knowledge_pb2.ListDatasetsRequest
    ) -> knowledge_pb2.ListDatasetsResponse:
        limit = page_size(request.page_size)
        before = read_page_token(request.page_token, int, str)
        found = await self._records.read(
            lambda connection: datasets.page(connection, tenant, limit + 1, before)
        )
        response = knowledge_pb2.ListDatasetsResponse(datasets=map(_dataset, found[:limit]))
        if len(found) > limit:
            last = found[limit - 1]
            response.next_page_token = page_token(last.created_at_ms, last.dataset_id)
        return response

    async def list_documents(
        self, tenant: str, request: knowledge_pb2.ListDocumentsRequest
    ) -> knowledge_pb2.ListDocumentsResponse:
        check_dataset_id(request.dataset_id)
        limit = page_size(request.page_size)
        after = read_page_token(request.page_token, int, int, str)
        found = await self._records.read(
            lambda connection: documents.page(connection, tenant, request.dataset_id, limit + 1, after)
        )
        response = knowledge_pb2.ListDocumentsResponse(documents=map(_document, found[:limit]))
        if len(found) > limit:
            last = found[limit - 1]
            response.next_page_token = page_token(last.uploaded_at_ms, last.position, last.document_id)
        return response

    async def status(
        self, tenant: str, request: knowledge_pb2.GetStatusRequest
    ) -> knowledge_pb2.GetStatusResponse:
        check_dataset_id(request.dataset_id)

        def read(connection: sa.Connection) -> tuple[DatasetState, list[sa.Row[Any]]]:
            state = datasets.state(connection, tenant, request.dataset_id)
            return state, documents.refusals(connection, tenant, request.dataset_id, _ERRORS_LISTED)

        state, refusals = await self._records.read(read)
        response = knowledge_pb2.GetStatusResponse(
            dataset_id=state.dataset_id,
            status=state.status,
            progress=state.progress,
            documents=state.documents,
            chunks=state.chunks,
        )
        if state.job_error is not None:
            reason, message = state.job_error
            response.errors.add(reason=reason, message=message)
        for row in refusals:
            response.errors.add(
                document_id=row.document_id, name=row.name, reason=row.reason, message=row.message
            )
        return response

    async def build_index(
        self, tenant: str, request: knowledge_pb2.BuildIndexRequest
    ) -> knowledge_pb2.BuildIndexResponse:
        """Commits a job, which the job process takes up within a second."""
        check_dataset_id(request.dataset_id)
        _check_request_id(request.request_id)
        chunk_size, overlap = _options(request)
        asked = requests.digest("index", request.dataset_id, chunk_size, overlap)
        now_ms = _now_ms()

        def write(connection: sa.Connection) -> str:
            datasets.lock(connection, tenant, request.dataset_id)
            if request.request_id:
                known = requests.recall(connection, tenant, request.request_id, asked)
                if known is not None:
                    return known
            job_id = index_jobs.begin(connection, tenant, request.dataset_id, chunk_size, overlap, now_ms)
            if request.request_id:
                key = (connection, tenant, request.request_id, asked)
                requests.remember(*key, dataset_id=request.dataset_id, answer=job_id, now_ms=now_ms)
            return job_id

        job_id = await self._records.write(write, durable=True)
        log.info("index_asked", dataset_id=request.dataset_id, job_id=job_id)
        return knowledge_pb2.BuildIndexResponse(
            job_id=job_id, dataset_id=request.dataset_id, status="pending"
        )

    async def delete(self, tenant: str, dataset_id: str, document_id: str | None = None) -> None:
        """Deletes a document, or without one the dataset. It is in no answer once this returns."""
        check_dataset_id(dataset_id)
        now_ms = _now_ms()
        gone = await self._records.write(
            lambda connection: datasets.delete(connection, tenant, dataset_id, document_id, now_ms),
            durable=True,
        )
        log.info("deleted", dataset_id=dataset_id, documents=len(gone))
        try:
            await self._passages.delete(tenant, dataset_id, gone)
        except Unavailable as error:  # the purge, which is on disk, does it later
            log.warning("passages_not_deleted_yet", dataset_id=dataset_id, message=error.message)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _id_for(tenant: str, request_id: str) -> str:
    """The same call again makes the same dataset, also when both run at once."""
    if not request_id:
        return new_dataset_id()
    return f"ds_{requests.digest('dataset', tenant, request_id)[:16]}"


def _check_request_id(request_id: str) -> None:
    if len(request_id) > _REQUEST_ID_LIMIT or not request_id.isprintable():
        raise InvalidArgument({"request_id": f"must be at most {_REQUEST_ID_LIMIT} printable characters"})


def _options(request: knowledge_pb2.BuildIndexRequest) -> tuple[int, int]:
    """Chunk size and overlap in tokens. Unimplemented INDEX_TYPE_UNSUPPORTED for what cannot be built yet."""
    if request.index_type in ("graph", "hybrid"):
        raise Unimplemented(
            error_reason_pb2.ERROR_REASON_INDEX_TYPE_UNSUPPORTED,
            f"A {request.index_type} index cannot be built yet. Build a vector index.",
            metadata={"index_type": request.index_type},
        )
    if request.index_type not in ("", "vector"):
        raise InvalidArgument({"index_type": "must be `vector`, `graph` or `hybrid`"})
    options = request.options
    chunk_size = options.chunk_size if options.HasField("chunk_size") else _DEFAULT_CHUNK_SIZE
    if chunk_size not in _CHUNK_SIZES:
        raise InvalidArgument({"options.chunk_size": "must be 32 to 2048 tokens"})
    overlap = options.overlap if options.HasField("overlap") else chunk_size // 8
    if overlap > chunk_size // 2:
        half = f"must be at most half of chunk_size, {chunk_size // 2} tokens"
        raise InvalidArgument({"options.overlap": half})
    return chunk_size, overlap


def _time(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


def _dataset(state: DatasetState) -> knowledge_pb2.Dataset:
    return knowledge_pb2.Dataset(
        dataset_id=state.dataset_id,
        name=state.name,
        status=state.status,
        documents=state.documents,
        chunks=state.chunks,
        created_at=_time(state.created_at_ms),
    )


def _document(row: sa.Row[Any]) -> knowledge_pb2.Document:
    document = knowledge_pb2.Document(
        document_id=row.document_id,
        name=row.name,
        bytes=row.bytes,
        status=row.status,
        chunks=row.chunks,
        created_at=_time(row.uploaded_at_ms),
    )
    if row.status == "refused":
        document.error.reason, document.error.message = row.reason, row.message
    return document

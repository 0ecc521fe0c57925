"""Datasets and documents: upload, index, wait until they can be asked about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from weft.connection import Connection, Outcome, being_cancelled, new_id, pages
from weft.errors import DeadlineExceeded, FailedPrecondition, Unavailable, from_rpc
from weft.v1.knowledge_pb2 import (
    BuildIndexRequest,
    CreateDatasetRequest,
    Dataset,
    DeleteDatasetRequest,
    DeleteDatasetResponse,
    DeleteDocumentRequest,
    DeleteDocumentResponse,
    Document,
    GetStatusRequest,
    GetStatusResponse,
    IndexOptions,
    ListDatasetsRequest,
    ListDocumentsRequest,
    UploadHeader,
    UploadRequest,
    UploadResponse,
)
from weft.v1.knowledge_pb2_grpc import KnowledgeServiceStub

_PIECE_BYTES: Final = 1 << 20
_POLL_S: Final = 0.5

File = str | Path | tuple[str, bytes | AsyncIterable[bytes]]
"""A file's path, or a name and the bytes: all of them, or an async iterable of pieces of any size."""


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far the file `name` is; `total_bytes` is None where it is not known before."""

    name: str
    sent_bytes: int
    total_bytes: int | None


class Knowledge:
    """`weft.knowledge`. Reading needs the role `member`, all else `editor`."""

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    async def create_dataset(self, dataset_id: str = "", name: str = "") -> Dataset:
        """Makes an empty dataset, under an id of the server's where none is given. AlreadyExists."""
        return await self._connection.unary(
            self._stub.CreateDataset,
            CreateDatasetRequest(dataset_id=dataset_id, name=name, request_id=new_id()),
            timeout_s=self._timeout_s,
        )

    def datasets(self) -> AsyncIterator[Dataset]:
        """Every dataset of the tenant, the newest first."""

        async def fetch(page_token: str) -> tuple[list[Dataset], str]:
            page = await self._connection.unary(
                self._stub.ListDatasets,
                ListDatasetsRequest(page_size=100, page_token=page_token),
                timeout_s=self._timeout_s,
            )
            return [*page.datasets], page.next_page_token

        return pages(fetch)

    def documents(self, dataset_id: str) -> AsyncIterator[Document]:
        """Every document of a dataset, in the order of their upload. NotFound."""

        async def fetch(page_token: str) -> tuple[list[Document], str]:
            page = await self._connection.unary(
                self._stub.ListDocuments,
                ListDocumentsRequest(dataset_id=dataset_id, page_size=100, page_token=page_token),
                timeout_s=self._timeout_s,
            )
            return [*page.documents], page.next_page_token

        return pages(fetch)

    async def delete_dataset(self, dataset_id: str) -> None:
        """Deletes a dataset and every trace of it. NotFound."""
        await self._connection.unary(
            self._stub.DeleteDataset,
            DeleteDatasetRequest(dataset_id=dataset_id),
            timeout_s=self._timeout_s,
            if_gone=DeleteDatasetResponse(),
        )

    async def delete_document(self, dataset_id: str, document_id: str) -> None:
        """Deletes one document and every trace of it. NotFound."""
        await self._connection.unary(
            self._stub.DeleteDocument,
            DeleteDocumentRequest(dataset_id=dataset_id, document_id=document_id),
            timeout_s=self._timeout_s,
            if_gone=DeleteDocumentResponse(),
        )

    async def upload(
        self,
        *files: File,
        dataset_id: str = "",
        progress: Callable[[UploadProgress], None] | None = None,
        timeout_s: float = 3600.0,
    ) -> UploadResponse:
        """Uploads files into a dataset; without an id one is made. No file is held in memory.

        The answer tells of each file whether it is "stored", a "duplicate" or "refused", and why. It
        is not tried again by itself; to send the same bytes once more does no harm.
        """
        metadata = await self._connection.metadata(new_id())
        call = self._stub.Upload(metadata=metadata, timeout=timeout_s)
        outcome = Outcome(call)
        try:
            async for message in _messages(files, dataset_id, progress):
                await call.write(message)
            await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            pass  # the server has ended the call already: awaiting it below tells why
        except BaseException:
            call.cancel()
            raise
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(outcome.error(error), self._connection.address) from None
        except asyncio.CancelledError:
            if being_cancelled():
                raise
            raise Unavailable("The upload was broken off. Send the files again.") from None

    async def index(
        self, dataset_id: str, *, chunk_size: int | None = None, overlap: int | None = None
    ) -> str:
        """Starts to index what is not indexed yet; returns the id of the job. See `wait_ready`.

        `chunk_size` is the tokens of a passage, 32 to 2,048 (256), `overlap` those it repeats of the
        one before. FailedPrecondition where there are no documents, or a job with other options runs.
        """
        answer = await self._connection.unary(
            self._stub.BuildIndex,
            BuildIndexRequest(
                dataset_id=dataset_id,
                index_type="vector",
                options=IndexOptions(chunk_size=chunk_size, overlap=overlap),
                request_id=new_id(),
            ),
            timeout_s=self._timeout_s,
        )
        return answer.job_id

    async def status(self, dataset_id: str) -> GetStatusResponse:
        """How far a dataset is, and which documents could not be indexed. NotFound."""
        return await self._connection.unary(
            self._stub.GetStatus, GetStatusRequest(dataset_id=dataset_id), timeout_s=self._timeout_s
        )

    async def wait_ready(
        self,
        dataset_id: str,
        *,
        progress: Callable[[GetStatusResponse], None] | None = None,
        timeout_s: float = 3600.0,
    ) -> GetStatusResponse:
        """Waits until an index that was started is ready. `progress` hears of each step.

        FailedPrecondition where no document could be indexed (`errors` of `status` has each);
        DeadlineExceeded after `timeout_s`, while the job goes on.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            status = await self.status(dataset_id)
            if progress is not None:
                progress(status)
            match status.status:
                case "ready":
                    return status
                case "failed":
                    first = status.errors[0] if status.errors else None
                    raise FailedPrecondition(
                        f"No document of {dataset_id} could be indexed."
                        + (f" {first.name}: {first.message}" if first else ""),
                        reason=first.reason if first else "",
                    )
            if loop.time() + _POLL_S > end:
                raise DeadlineExceeded(f"{dataset_id} is not ready yet; it is still being indexed.")
            await asyncio.sleep(_POLL_S)

    @property
    def _stub(self) -> KnowledgeServiceStub:
        return KnowledgeServiceStub(self._connection.channel)


async def _messages(
    files: tuple[File, ...], dataset_id: str, progress: Callable[[UploadProgress], None] | None
) -> AsyncIterator[UploadRequest]:
    for file in files:
        name, content, total = _open(file)
        yield UploadRequest(header=UploadHeader(dataset_id=dataset_id, name=name))
        sent = 0
        if progress is not None:
            progress(UploadProgress(name, sent, total))
        async for piece in content:
            for start in range(0, len(piece), _PIECE_BYTES):
                data = piece[start : start + _PIECE_BYTES]
                yield UploadRequest(data=data)
                sent += len(data)
                if progress is not None:
                    progress(UploadProgress(name, sent, total))


def _open(file: File) -> tuple[str, AsyncIterable[bytes], int | None]:
    match file:
        case (name, bytes() as content):
            return name, _pieces_of_bytes(content), len(content)
        case (name, content):
            return name, content, None
        case _:
            path = Path(file)
            return path.name, _pieces_of_file(path), path.stat().st_size


async def _pieces_of_bytes(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _pieces_of_file(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
            yield piece

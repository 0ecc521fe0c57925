"""KnowledgeService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from weft.v1 import knowledge_pb2 as pb
from weft.v1 import knowledge_pb2_grpc
from weftd.knowledge.catalogue import Catalogue
from weftd.knowledge.uploads import Piece, Uploads
from weftd.rpc.caller import current

__all__ = ["KnowledgeServicer"]

_Context = Any  # every handler's second argument; none of them uses it


class KnowledgeServicer(knowledge_pb2_grpc.KnowledgeServiceServicer):
    def __init__(self, catalogue: Catalogue, uploads: Uploads) -> None:
        self._catalogue = catalogue
        self._uploads = uploads

    async def CreateDataset(self, request: pb.CreateDatasetRequest, context: _Context) -> pb.Dataset:
        return await self._catalogue.create(current().tenant, request)

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: _Context
    ) -> pb.ListDatasetsResponse:
        return await self._catalogue.list_datasets(current().tenant, request)

    async def DeleteDataset(
        self, request: pb.DeleteDatasetRequest, context: _Context
    ) -> pb.DeleteDatasetResponse:
        await self._catalogue.delete(current().tenant, request.dataset_id)
        return pb.DeleteDatasetResponse()

    async def ListDocuments(
        self, request: pb.ListDocumentsRequest, context: _Context
    ) -> pb.ListDocumentsResponse:
        return await self._catalogue.list_documents(current().tenant, request)

    async def DeleteDocument(
        self, request: pb.DeleteDocumentRequest, context: _Context
    ) -> pb.DeleteDocumentResponse:
        await self._catalogue.delete(current().tenant, request.dataset_id, request.document_id)
        return pb.DeleteDocumentResponse()

    async def Upload(
        self, request_iterator: AsyncIterator[pb.UploadRequest], context: _Context
    ) -> pb.UploadResponse:
        return await self._uploads.stream(current().tenant, request_iterator)

    async def UploadForm(
        self, request_iterator: AsyncIterator[Piece], context: _Context
    ) -> pb.UploadResponse:
        return await self._uploads.form(current().tenant, request_iterator)

    async def BuildIndex(self, request: pb.BuildIndexRequest, context: _Context) -> pb.BuildIndexResponse:
        return await self._catalogue.build_index(current().tenant, request)

    async def GetStatus(self, request: pb.GetStatusRequest, context: _Context) -> pb.GetStatusResponse:
        return await self._catalogue.status(current().tenant, request)

"""Opens the rooms: each service with what it needs, each store and model once for all of a process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from weft.v1 import chat_pb2_grpc, knowledge_pb2_grpc, models_pb2_grpc, retrieval_pb2_grpc
from weftd import compose, compose_models
from weftd.addresses import grpc_target
from weftd.rpc import gauges
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain
from weftd.rpc.health import Dependency
from weftd.rpc.server import Service
from weftd.settings import ServiceName, Settings

if TYPE_CHECKING:
    from weftd.inference.port import Embedder, Reranker
    from weftd.models.served import ServedModel
    from weftd.stores.records.engine import Records

__all__ = [
    "Rooms",
    "model_backends",
    "passages_backends",
    "records_backend",
    "show_embedder",
    "show_records",
]

T = TypeVar("T")

log = structlog.get_logger()


class Rooms:
    """Opens on demand; everything closes with `stack`. `dependencies` are the backends opened so far."""

    def __init__(self, settings: Settings, stack: AsyncExitStack, drain: Drain) -> None:
        self.dependencies: list[Dependency] = []
        self._settings = settings
        self._stack = stack
        self._drain = drain
        self._opened: dict[str, Any] = {}

    async def open(self, name: ServiceName) -> Service:
        """The servicer of a room, ready to be added to a server."""
        match name:
            case "chat":
                return await self._chat()
            case "retrieval":
                return await self._retrieval()
            case "knowledge":
                return await self._knowledge()
            case "models":
                return await self._models()
            case "edge":
                raise ValueError("The edge speaks HTTP: it is no gRPC service.")

    async def _chat(self) -> Service:
        from weftd.chat.mesh import MeshModels, MeshRetrieval
        from weftd.chat.room import ChatTurns
        from weftd.chat.service import ChatService
        from weftd.stores.records import datasets

        records = await self._records()
        records.write_apart()
        peers = Peers()
        self._stack.push_async_callback(peers.close)
        with compose.plainly():
            retrieval = grpc_target(self._settings.retrieval_address)
            models = grpc_target(self._settings.models_address)
        turns = await self._stack.enter_async_context(
            ChatTurns(
                records,
                MeshRetrieval(peers, retrieval),
                MeshModels(peers, models),
                self._drain,
                live_documents=datasets.live_documents,
                resume_grace_s=self._settings.resume_grace_s,
            )
        )
        gauges.show_used("turns", lambda: turns.running)
        return _service("Chat", ChatService(turns, records), chat_pb2_grpc.add_ChatServiceServicer_to_server)

    async def _retrieval(self) -> Service:
        from weftd.retrieval.search import Searcher
        from weftd.retrieval.service import RetrievalService
        from weftd.stores.records import datasets

        records = await self._records()
        passages = await self._passages()

        async def resolve(tenant: str, dataset_ids: Any, document_ids: Any) -> Any:
            return await records.read(
                lambda connection: datasets.resolve(connection, tenant, dataset_ids, document_ids)
            )

        async def live_documents(tenant: str, document_ids: Any) -> Any:
            return await records.read(
                lambda connection: datasets.live_documents(connection, tenant, document_ids)
            )

        reranker = await self._reranker()
        searcher = Searcher(passages.dense, passages.lexical, await self._embedder(), reranker)
        gauges.show_used("searches", lambda: searcher.running)
        return _service(
            "Retrieval",
            RetrievalService(searcher, resolve, live_documents, self._drain),
            retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server,
        )

    async def _knowledge(self) -> Service:
        from weftd.knowledge.catalogue import Catalogue
        from weftd.knowledge.intake import UploadLimits
        from weftd.knowledge.passage_writer import PassageWriter
        from weftd.knowledge.service import KnowledgeServicer
        from weftd.knowledge.uploads import Uploads

        records = await self._records()
        passages = await self._passages()
        limits = UploadLimits(file_bytes=self._settings.upload_limit_mb << 20)
        uploads = Uploads(records, compose.open_blobs(self._settings), limits)
        await uploads.recover()
        catalogue = Catalogue(records, PassageWriter(tuple(passages.stores.values())))
        return _service(
            "Knowledge",
            KnowledgeServicer(catalogue, uploads),
            knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server,
        )

    async def _models(self) -> Service:
        from weftd.models.served import ServedModel
        from weftd.models.service import ModelService

        registry = await self._stack.enter_async_context(
            compose_models.language_models(self._settings, await self._embedder())
        )
        served = {model.model_id: model for model in registry if isinstance(model, ServedModel)}
        self.dependencies += model_backends(self._settings, **served)
        publishing = await self._stack.enter_async_context(
            compose_models.open_publishing(self._settings, self._drain)
        )
        return _service(
            "Model", ModelService(registry, publishing), models_pb2_grpc.add_ModelServiceServicer_to_server
        )

    async def _records(self) -> Any:
        if "records" not in self._opened:
            records = await self._once("records", compose.open_records(self._settings))
            show_records(records)
            self.dependencies.append(records_backend(records))
        return self._opened["records"]

    async def _passages(self) -> Any:
        if "passages" not in self._opened:
            passages = await self._once("passages", compose.open_passages(self._settings))
            self.dependencies += passages_backends(passages)
        return self._opened["passages"]

    async def _embedder(self) -> Any:
        if "embedder" not in self._opened:
            embedder = await self._once("embedder", compose_models.open_embedder(self._settings))
            show_embedder(embedder)
            self.dependencies += model_backends(self._settings, embedder=embedder)
        return self._opened["embedder"]

    async def _reranker(self) -> Any:
        reranker = await self._once("reranker", compose_models.open_reranker(self._settings))
        gauges.show_loaded("reranker", reranker is not None)
        if reranker is None:
            log.info("no_reranker", hint="WEFT_RERANKER is empty: passages keep the order of the search.")
        else:
            gauges.show_waiting("rerankings", lambda: reranker.waiting)
            self.dependencies += model_backends(self._settings, reranker=reranker)
        return reranker

    async def _once(self, name: str, opening: AbstractAsyncContextManager[T]) -> T:
        if name not in self._opened:
            self._opened[name] = await self._stack.enter_async_context(opening)
        opened: T = self._opened[name]
        return opened


def records_backend(records: Records) -> Dependency:
    """The records, for readiness."""
    return Dependency("records", records.address, records.ping, replaceable=True)


def passages_backends(passages: compose.Passages) -> list[Dependency]:
    """The stores of the passages, likewise."""
    return [
        Dependency(name, address, store.ping, replaceable=True)
        for name, (address, store) in zip(("passages", "words"), passages.stores.items(), strict=False)
    ]


def model_backends(settings: Settings, **models: Embedder | Reranker | ServedModel) -> list[Dependency]:
    """The models that a Triton serves, by name, likewise; those of this process are no backends."""
    if not settings.triton_url:
        return []
    return [
        Dependency(name, settings.triton_url, model.ping, replaceable=True) for name, model in models.items()
    ]


def show_records(records: Records) -> None:
    """What waits for the database, in this process's metrics."""
    gauges.show_waiting("records_writes", lambda: records.writes_waiting)
    gauges.show_waiting("records_reads", lambda: records.reads_waiting)


def show_embedder(embedder: Embedder) -> None:
    """What waits for the embedding model, likewise."""
    gauges.show_waiting("embeddings", lambda: embedder.waiting)


def _service(name: str, servicer: Any, add: Any) -> Service:
    return Service(f"weft.v1.{name}Service", servicer, add)

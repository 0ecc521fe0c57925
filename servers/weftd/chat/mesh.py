"""Retrieval and models over their stubs, also where they run in this very process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.models_pb2_grpc import ModelServiceStub
from weft.v1.retrieval_pb2 import SearchRequest, SearchResponse
from weft.v1.retrieval_pb2_grpc import RetrievalServiceStub
from weftd.rpc.channels import Peers

__all__ = ["MeshModels", "MeshRetrieval"]

# A search takes milliseconds; an answer without passages is better than none after this.
_SEARCH_TIMEOUT_S = 5.0


class MeshRetrieval:
    def __init__(self, peers: Peers, address: str) -> None:
        self._peers = peers
        self._stub = peers.stub(RetrievalServiceStub, "retrieval", address)

    async def search(self, request: SearchRequest) -> SearchResponse:
        return await self._peers.unary(self._stub.Search, request, timeout_s=_SEARCH_TIMEOUT_S)


class MeshModels:
    def __init__(self, peers: Peers, address: str) -> None:
        self._peers = peers
        self._stub = peers.stub(ModelServiceStub, "models", address)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        async with aclosing(self._peers.stream(self._stub.Generate, request)) as events:
            async for event in events:
                yield event

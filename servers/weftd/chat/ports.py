"""What a turn asks of other services."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.retrieval_pb2 import SearchRequest, SearchResponse

__all__ = ["Models", "Retrieval"]


class Retrieval(Protocol):
    async def search(self, request: SearchRequest) -> SearchResponse:
        """Passages for a query, on behalf of the current caller. Raises WeftError."""
        ...


class Models(Protocol):
    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        """What a model writes, on behalf of the current caller; closing it stops it. Raises WeftError."""
        ...

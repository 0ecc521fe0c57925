"""Servers for `bench.stream_cost`, on the address in WEFT_CHAT_ADDRESS.

    python -m bench.bare bare     ChatService relays what ModelService writes, and nothing else: two hops
    python -m bench.bare weft     `weft serve chat retrieval knowledge models edge`, with the same model

The model answers at once: `EVENTS` events, the last of them "done". In "weft" nothing is searched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server
from weft.v1.common_pb2 import Usage
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.models_pb2_grpc import ModelServiceServicer, ModelServiceStub, add_ModelServiceServicer_to_server
from weft.v1.retrieval_pb2 import SearchResponse

EVENTS = 20
PIECES = [f"token {number} " for number in range(EVENTS - 1)]
TEXT = "".join(PIECES)


class Instant:
    """A `LanguageModel` that never waits."""

    model_id = "instant"
    provider = "openai"
    can_continue = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        for piece in PIECES:
            yield GenerateEvent(type="delta", content=piece)
        yield GenerateEvent(type="done", usage=Usage(), finish_reason="stop")

    async def close(self) -> None: ...


class BareModels(ModelServiceServicer):
    async def Generate(self, request: GenerateRequest, context: Any) -> AsyncGenerator[GenerateEvent, None]:
        seq = 0
        async for event in Instant().generate(request):
            event.seq = seq = seq + 1
            yield event


class BareChat(ChatServiceServicer):
    def __init__(self, address: str) -> None:
        self._models = ModelServiceStub(grpc.aio.insecure_channel(address))

    async def StreamChat(self, request: Any, context: Any) -> AsyncGenerator[ChatEvent, None]:
        async for event in self._models.Generate(GenerateRequest(messages=request.messages)):
            yield ChatEvent(type=event.type, content=event.content, seq=event.seq)


async def bare(address: str) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 20_000)])
    add_ChatServiceServicer_to_server(BareChat(address), server)  # type: ignore[abstract]  # only the one RPC
    add_ModelServiceServicer_to_server(BareModels(), server)  # type: ignore[abstract]
    known = health.HealthServicer()
    for name in ("", *(f"weft.v1.{room}Service" for room in ("Chat", "Retrieval", "Knowledge", "Model"))):
        await known.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(known, server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def weft() -> None:
    """The real services, but for the model and the search."""
    from weftd import compose
    from weftd.chat import mesh
    from weftd.models.port import ModelRegistry
    from weftd.programs import serve
    from weftd.settings import SERVICES, Settings

    @asynccontextmanager
    async def instant(*_: object) -> AsyncIterator[ModelRegistry]:
        yield ModelRegistry([Instant()])

    class NoRetrieval:
        def __init__(self, *_: object) -> None: ...

        async def search(self, _request: object) -> SearchResponse:
            return SearchResponse()

    compose.language_models = instant  # type: ignore[assignment]  # the bench's own
    mesh.MeshRetrieval = NoRetrieval  # type: ignore[assignment, misc]
    uvloop.run(serve(Settings(), SERVICES))


if __name__ == "__main__":
    if sys.argv[1] == "weft":
        weft()
    else:
        uvloop.run(bare(os.environ["WEFT_CHAT_ADDRESS"]))

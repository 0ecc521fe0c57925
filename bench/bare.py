"""Servers for `bench.stream_cost` and `bench.unary_cost`, on the address in WEFT_CHAT_ADDRESS.

    python -m bench.bare bare           ChatService relays what ModelService writes and nothing else: two hops
    python -m bench.bare weft [PART …]  `weft serve chat retrieval knowledge models edge`, with the same model

The model writes `EVENTS` events, the last of them "done": at once, or where the question is `PACED` one each
`PAUSE_S`. The bare ChatService echoes `GetConversation`. In "weft" nothing is searched; each PART named
("store", "logs", "metrics") is left out, to see what it costs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from prometheus_client import Counter, Gauge, Histogram

from weft.v1.chat_pb2 import ChatEvent, Conversation, GetConversationRequest, GetConversationResponse
from weft.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server
from weft.v1.common_pb2 import Usage
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.models_pb2_grpc import ModelServiceServicer, ModelServiceStub, add_ModelServiceServicer_to_server
from weft.v1.retrieval_pb2 import SearchResponse

EVENTS = 20
PIECES = [f"token {number} " for number in range(EVENTS - 1)]
TEXT = "".join(PIECES)
PACED = "And slowly?"
PAUSE_S = 0.05


class Instant:
    """A `LanguageModel` that never thinks."""

    model_id = "instant"
    provider = "openai"
    can_continue = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        paced = request.messages[-1].content == PACED
        for piece in PIECES:
            if paced:
                await asyncio.sleep(PAUSE_S)
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

    async def GetConversation(self, request: GetConversationRequest, context: Any) -> GetConversationResponse:
        return GetConversationResponse(conversation=Conversation(conversation_id=request.conversation_id))


async def bare(address: str) -> None:
    def add(server: grpc.aio.Server) -> None:
        add_ChatServiceServicer_to_server(BareChat(address), server)  # type: ignore[abstract]  # only two RPCs
        add_ModelServiceServicer_to_server(BareModels(), server)  # type: ignore[abstract]

    await serve_bare(address, add)


async def serve_bare(address: str, add: Callable[[grpc.aio.Server], None]) -> None:
    """Servicers that `add` adds, and health for Envoy, without interceptors."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 20_000)])
    add(server)
    known = health.HealthServicer()
    for name in ("", *(f"weft.v1.{room}Service" for room in ("Chat", "Retrieval", "Knowledge", "Model"))):
        await known.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(known, server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


def weft(left_out: Sequence[str]) -> None:
    """The real services, but for the model, the search, and the parts left out."""
    from weftd import compose_models
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

    for part in left_out:
        {"store": _leave_out_store, "logs": _leave_out_logs, "metrics": _leave_out_metrics}[part]()
    compose_models.language_models = instant  # type: ignore[assignment]  # the bench's own
    mesh.MeshRetrieval = NoRetrieval  # type: ignore[assignment, misc]
    uvloop.run(serve(Settings(), SERVICES))


def _leave_out_store() -> None:
    """A turn is begun, and its events are stored, with no database and no other thread."""
    from weftd.chat.upkeep import Upkeep
    from weftd.stores.records import new_turns
    from weftd.stores.records.engine import Records

    async def beat(self: Upkeep) -> None: ...  # it would miss the turns in the store

    numbers = itertools.count(1)

    async def write(self: Records, operation: Any, item: Any, *, durable: bool = False) -> Any:
        if isinstance(item, new_turns.NewTurn):
            return new_turns.Begun(next(numbers), [])
        return True

    Upkeep.beat = beat  # type: ignore[method-assign]
    Records.write_batched = write  # type: ignore[method-assign]


def _leave_out_logs() -> None:
    os.environ["WEFT_LOG_LEVEL"] = "error"


def _leave_out_metrics() -> None:
    def nothing(*_: object) -> None: ...

    Histogram.observe = Counter.inc = Gauge.inc = Gauge.dec = nothing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    if sys.argv[1] == "weft":
        weft(sys.argv[2:])
    else:
        uvloop.run(bare(os.environ["WEFT_CHAT_ADDRESS"]))

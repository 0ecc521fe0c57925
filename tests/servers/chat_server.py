"""A real gRPC server with chat, and a scripted model and search behind it, over real calls.

As a program (`python -m tests.servers.chat_server DATABASE_URL KEYS_FILE`) it prints its port and serves
until it is killed; its model writes a word every 20 ms.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from tests.servers.chat_room import ScriptedModel, ScriptedSearch, chat_turns
from weft.v1 import chat_pb2_grpc, models_pb2, models_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc
from weftd.chat.mesh import MeshModels, MeshRetrieval
from weftd.chat.room import ChatTurns
from weftd.chat.service import ChatService
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

WORDS = [f"word{number} " for number in range(40)]


class _Models(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, model: ScriptedModel) -> None:
        self._model = model

    async def Generate(
        self, request: models_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[models_pb2.GenerateEvent]:
        async with aclosing(self._model.generate(request)) as events:
            async for event in events:
                yield event

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse()


class _Retrieval(retrieval_pb2_grpc.RetrievalServiceServicer):
    def __init__(self, search: ScriptedSearch) -> None:
        self._search = search

    async def Search(
        self, request: retrieval_pb2.SearchRequest, context: Any
    ) -> retrieval_pb2.SearchResponse:
        return await self._search.search(request)

    async def StreamSearch(
        self, requests: AsyncIterator[retrieval_pb2.StreamSearchRequest], context: Any
    ) -> AsyncIterator[retrieval_pb2.StreamSearchResponse]:
        async for request in requests:
            yield retrieval_pb2.StreamSearchResponse(query_id=request.query_id)


class ChatServer:
    """What a test needs of a running server."""

    def __init__(self, address: str, turns: ChatTurns, drain: Drain) -> None:
        self.address = address
        self.turns = turns
        self.drain = drain


@asynccontextmanager
async def running_chat(
    records: Records, keys: Path, model: ScriptedModel, search: ScriptedSearch, **options: Any
) -> AsyncIterator[ChatServer]:
    peers, drain = Peers(), Drain(1.0)
    names = ["weft.v1.ChatService", "weft.v1.ModelService", "weft.v1.RetrievalService"]
    verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=keys)
    # The port is known only once the server is built: the peers are added to it afterwards.
    backend = build_server(
        [
            Service(names[1], _Models(model), models_pb2_grpc.add_ModelServiceServicer_to_server),
            Service(names[2], _Retrieval(search), retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server),
        ],
        CallInterceptor(verifier, Drain(1.0)),
        Health(names[1:]),
    )
    behind = f"127.0.0.1:{bind(backend, '127.0.0.1:0')}"
    await backend.start()
    turns = chat_turns(records, MeshRetrieval(peers, behind), MeshModels(peers, behind), drain, **options)
    async with turns:
        server = build_server(
            [Service(names[0], ChatService(turns, records), chat_pb2_grpc.add_ChatServiceServicer_to_server)],
            CallInterceptor(verifier, drain),
            Health(names[:1]),
        )
        address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
        await server.start()
        try:
            yield ChatServer(address, turns, drain)
        finally:
            await server.stop(None)
    await peers.close()
    await backend.stop(None)


def bearer(keys: Path, tenant: str = "acme", ttl_s: float = 60) -> list[tuple[str, str]]:
    token = mint(
        keys, issuer="weft", audience="weft", tenant=tenant, subject="u", roles=("member",), ttl_s=ttl_s
    )
    return [("authorization", f"Bearer {token}")]


def chat_stub(address: str) -> tuple[grpc.aio.Channel, chat_pb2_grpc.ChatServiceStub]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address, options=options)
    return channel, chat_pb2_grpc.ChatServiceStub(channel)


async def _serve(url: str, keys: str) -> None:
    await asyncio.to_thread(migrate, url)
    model = ScriptedModel(WORDS, paced=True, can_continue=True)
    options = {"beat_s": 0.1, "stale_s": 1.0}
    async with running_chat(Records(url), Path(keys), model, ScriptedSearch(), **options) as server:
        sys.stdout.write(server.address + "\n")
        sys.stdout.flush()
        parent = os.getppid()
        while os.getppid() == parent:  # a test run that was killed leaves nothing behind
            model.allow(1)
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))

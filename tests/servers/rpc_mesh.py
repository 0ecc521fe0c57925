"""A server with two services on it, for tests of what every service shares."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from weft.v1 import (
    common_pb2,
    error_reason_pb2,
    models_pb2,
    models_pb2_grpc,
    retrieval_pb2,
    retrieval_pb2_grpc,
)
from weftd import errors
from weftd.keys import ensure_keys
from weftd.rpc import caller
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server

KEYS = Path(tempfile.mkdtemp()) / "jwks.json"
TRACEPARENT = f"00-{'a' * 32}-{'b' * 16}-01"
ensure_keys(KEYS)


def token(ttl_s: float = 3600, roles: tuple[str, ...] = ("member",), tenant: str = "acme") -> str:
    return mint(KEYS, issuer="weft", audience="weft", tenant=tenant, subject="u1", roles=roles, ttl_s=ttl_s)


def bearer(value: str | None = None, **more: str) -> list[tuple[str, str]]:
    pairs = {key.replace("_", "-"): value for key, value in more.items()}
    return [("authorization", f"Bearer {value or token()}"), *pairs.items()]


class Models(models_pb2_grpc.ModelServiceServicer):
    """Does what the model id of the request says."""

    def __init__(self) -> None:
        self.made = 0
        self.began = asyncio.Event()
        self.closed = asyncio.Event()
        self.callers: list[caller.Caller] = []

    async def Generate(
        self, request: models_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[models_pb2.GenerateEvent]:
        self.callers.append(caller.current())
        self.began.set()
        try:
            match request.model_id:
                case "endless":
                    while True:
                        self.made += 1
                        yield models_pb2.GenerateEvent(type="delta", seq=self.made)
                        await asyncio.sleep(0.001)
                case "silent":
                    await asyncio.Event().wait()
                case "flood":
                    for self.made in range(1, 1001):
                        yield models_pb2.GenerateEvent(type="delta", content="x" * 50_000, seq=self.made)
                case "broken":
                    for seq in range(1, 51):
                        yield models_pb2.GenerateEvent(type="delta", seq=seq)
                    raise errors.Unavailable(
                        error_reason_pb2.ERROR_REASON_MODEL_BROKEN, "broke", retry_after_s=2.5
                    )
                case "group":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(raise_not_found())
        finally:
            self.closed.set()

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Any
    ) -> models_pb2.ListModelsResponse:
        self.callers.append(caller.current())
        match request.page_token:
            case "field":
                raise errors.InvalidArgument({"page_token": "坏" * 5000, "page_size": "too large"})
            case "secret":
                raise ValueError("the user's secret words")
            case "child":
                child = asyncio.create_task(asyncio.sleep(60))
                asyncio.get_running_loop().call_soon(child.cancel)
                await child
            case "slow":
                await asyncio.sleep(60)
        return models_pb2.ListModelsResponse(next_page_token="fine")


async def raise_not_found() -> None:
    raise errors.NotFound(
        error_reason_pb2.ERROR_REASON_MODEL_NOT_FOUND, "no such model", metadata={"model_id": "m"}
    )


class Retrieval(retrieval_pb2_grpc.RetrievalServiceServicer):
    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def Search(
        self, request: retrieval_pb2.SearchRequest, context: Any
    ) -> retrieval_pb2.SearchResponse:
        return retrieval_pb2.SearchResponse(results=[common_pb2.Reference(content=request.query)])

    async def StreamSearch(
        self, requests: AsyncIterator[retrieval_pb2.StreamSearchRequest], context: Any
    ) -> AsyncIterator[retrieval_pb2.StreamSearchResponse]:
        try:
            async for request in requests:
                yield retrieval_pb2.StreamSearchResponse(query_id=request.query_id)
        finally:
            self.closed.set()


class Mesh:
    """One server with both services, and stubs to it."""

    def __init__(self, health: Health | None = None) -> None:
        self.models, self.retrieval, self.drain = Models(), Retrieval(), Drain(grace_s=1)
        names = ["weft.v1.ModelService", "weft.v1.RetrievalService"]
        self.health = health or Health(names)
        verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=KEYS)
        self.server = build_server(
            [
                Service(names[0], self.models, models_pb2_grpc.add_ModelServiceServicer_to_server),
                Service(names[1], self.retrieval, retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server),
            ],
            CallInterceptor(verifier, self.drain),
            self.health,
        )
        self.address = f"127.0.0.1:{bind(self.server, '127.0.0.1:0')}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = models_pb2_grpc.ModelServiceStub(self.channel)
        self.search = retrieval_pb2_grpc.RetrievalServiceStub(self.channel)
        self.peers = Peers()
        self.peer = self.peers.stub(models_pb2_grpc.ModelServiceStub, "models", self.address)


@asynccontextmanager
async def running(mesh: Mesh) -> AsyncIterator[Mesh]:
    await mesh.server.start()
    try:
        yield mesh
    finally:
        await mesh.channel.close()
        await mesh.peers.close()
        await mesh.server.stop(None)


def details(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            assert status.message == error.details()
            for detail in status.details:
                found = kind()
                if detail.Unpack(found):
                    return found
    return None


def reason(error: grpc.aio.AioRpcError) -> str:
    info = details(error, error_details_pb2.ErrorInfo)
    assert info.domain == "weft"
    return str(info.reason)


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def models_request(page_token: str = "") -> models_pb2.ListModelsRequest:
    return models_pb2.ListModelsRequest(page_token=page_token)


def generate(model_id: str) -> models_pb2.GenerateRequest:
    return models_pb2.GenerateRequest(model_id=model_id)

"""What stands behind the real Envoy in its tests: the contract's services with fake answers, and tokens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.api import httpbody_pb2
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from weft.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    common_pb2,
    knowledge_pb2,
    knowledge_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    retrieval_pb2,
    retrieval_pb2_grpc,
)
from weftd.edge import DevToken, build_app, serve
from weftd.envoy import Endpoint, EnvoyConfig, EnvoyProcess

SECRET = "a secret for tests that is long enough"
SERVICES = {
    "chat": chat_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,
    "knowledge": knowledge_pb2.DESCRIPTOR.services_by_name["KnowledgeService"].full_name,
    "retrieval": retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name,
    "models": models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
}


def token(*, key: OctKey | RSAKey | None = None, kid: str = "", alg: str = "HS256", **claims: Any) -> str:
    """A token that is good unless `claims` say otherwise; a claim that is None is left out."""
    now = int(time.time())
    body: dict[str, Any] = {
        "iss": "weft",
        "aud": "weft",
        "sub": "ann",
        "tenant": "acme",
        "roles": ["member"],
        "exp": now + 600,
    }
    body.update(claims)
    header = {"alg": alg, **({"kid": kid} if kid else {})}
    body = {name: value for name, value in body.items() if value is not None}
    return jwt.encode(header, body, key or OctKey.import_key(SECRET), algorithms=[alg])


def write_secret(file: Path, *others: dict[str, Any]) -> None:
    """A set of the key that `token` signs with, and others."""
    secret = OctKey.import_key(SECRET, {"alg": "HS256"}).as_dict(private=True)
    file.write_text(json.dumps({"keys": [secret, *others]}))


def bearer(text: str | None = None, **headers: str) -> dict[str, str]:
    return {
        "authorization": f"Bearer {text or token()}",
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }


@dataclass
class Seen:
    """What the services saw of the calls."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    time_left_s: list[float | None] = field(default_factory=list)
    uploaded_bytes: int = 0
    upload_content_type: str = ""
    largest_piece: int = 0
    searches: int = 0
    flooded_bytes: int = 0
    ended: asyncio.Queue[float] = field(default_factory=asyncio.Queue)

    def note(self, context: Any) -> None:
        self.metadata.append({k: v for k, v in context.invocation_metadata() if isinstance(v, str)})
        self.time_left_s.append(context.time_remaining())


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Answers as the question says: "two", "refuse", "hold" (one event, then nothing until cancelled),
    "flood" (events without end)."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.ChatEvent]:
        self.seen.note(context)
        if request.request_id:
            await context.send_initial_metadata([("x-request-id", request.request_id)])
        question = request.messages[-1].content if request.messages else "two"
        if question == "refuse":
            await context.abort_with_status(_refusal())
        while question == "flood":
            self.seen.flooded_bytes += 32 << 10
            yield chat_pb2.ChatEvent(type="delta", content="x" * (32 << 10))
        yield chat_pb2.ChatEvent(type="delta", content="RAG（检索", seq=1)
        if question == "hold":
            try:
                await asyncio.Event().wait()
            finally:
                self.seen.ended.put_nowait(time.monotonic())
        yield chat_pb2.ChatEvent(
            type="done", usage=common_pb2.Usage(prompt_tokens=0, completion_tokens=2, total_tokens=2), seq=2
        )

    async def Converse(self, requests: Any, context: Any) -> AsyncIterator[chat_pb2.ConverseResponse]:
        self.seen.note(context)
        async for request in requests:
            yield chat_pb2.ConverseResponse(
                conversation_id=request.turn.conversation_id,
                event=chat_pb2.ChatEvent(type="delta", content=request.turn.messages[0].content, seq=1),
            )

    async def ListConversations(self, request: Any, context: Any) -> chat_pb2.ListConversationsResponse:
        self.seen.note(context)
        return chat_pb2.ListConversationsResponse(next_page_token=str(request.page_size))


class Knowledge(knowledge_pb2_grpc.KnowledgeServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def UploadForm(self, requests: Any, context: Any) -> knowledge_pb2.UploadResponse:
        self.seen.note(context)
        async for piece in requests:
            assert isinstance(piece, httpbody_pb2.HttpBody)
            self.seen.upload_content_type = self.seen.upload_content_type or piece.content_type
            self.seen.uploaded_bytes += len(piece.data)
            self.seen.largest_piece = max(self.seen.largest_piece, len(piece.data))
        return knowledge_pb2.UploadResponse(dataset_id="ds_1")


class Retrieval(retrieval_pb2_grpc.RetrievalServiceServicer):
    """The query "silent" is never answered."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def Search(self, request: Any, context: Any) -> retrieval_pb2.SearchResponse:
        self.seen.note(context)
        self.seen.searches += 1
        if request.query == "silent":
            await asyncio.Event().wait()
        found = common_pb2.Reference(id=1, content=request.query)
        return retrieval_pb2.SearchResponse(
            results=[found], metadata=retrieval_pb2.SearchMetadata(execution_time_ms=0)
        )


class Models(models_pb2_grpc.ModelServiceServicer):
    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(model_id="extractive")])


def _refusal() -> Any:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="TURN_RUNNING", domain="weft"))
    status = status_pb2.Status(code=9, message="A turn is running. Wait for it.", details=[detail])
    return rpc_status.to_status(status)


@asynccontextmanager
async def backend(seen: Seen, port: int = 0) -> AsyncIterator[Endpoint]:
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(seen), server)
    knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(Knowledge(seen), server)
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(Retrieval(seen), server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(Models(), server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", *SERVICES.values()):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*SERVICES.values(), reflection.SERVICE_NAME], server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield Endpoint("127.0.0.1", bound)
    finally:
        await server.stop(None)


@asynccontextmanager
async def page(directory: Path) -> AsyncIterator[Endpoint]:
    """The edge's own HTTP server."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    app = build_app(directory, lambda: DevToken(token(), 1_900_000_000))
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, on_ready=ready.set_result))
    try:
        yield Endpoint("127.0.0.1", await ready)
    finally:
        serving.cancel()
        await asyncio.wait([serving])


@dataclass
class Edge:
    """A running Envoy with everything behind it."""

    envoy: EnvoyProcess
    config: EnvoyConfig
    seen: Seen

    @property
    def address(self) -> str:
        return str(self.envoy.address)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def http(self, **headers: str) -> httpx.AsyncClient:
        """Plain HTTP; its token is good unless `headers` say otherwise."""
        return httpx.AsyncClient(base_url=self.url, headers=bearer(**headers), timeout=10, trust_env=False)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address)

    async def changed(self, **changes: Any) -> None:
        config = replace(self.config, **changes)
        await self.envoy.update(config)
        self.config = config

    async def logged(self, *request_ids: str) -> list[dict[str, Any]]:
        """The access log's lines of these requests, when all are there: Envoy writes them in batches."""

        def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) for line in self.config.access_log.read_text().splitlines()]
            return [line for line in lines if line["request_id"] in request_ids]

        async def complete() -> bool:
            return {line["request_id"] for line in found()} == set(request_ids)

        await until(complete, True)
        return found()

    @asynccontextmanager
    async def conversation(self, text: str | None = None) -> AsyncIterator[Callable[[str], Awaitable[str]]]:
        """An open bidi stream; what is called gets back what it says."""
        async with self.channel() as channel:
            metadata = tuple(bearer(text).items())
            call = chat_pb2_grpc.ChatServiceStub(channel).Converse(metadata=metadata)

            async def say(text: str) -> str:
                message = common_pb2.Message(role="user", content=text)
                await call.write(
                    chat_pb2.ConverseRequest(turn=chat_pb2.StreamChatRequest(messages=[message]))
                )
                async with asyncio.timeout(10):
                    answer = await call.read()
                return str(answer.event.content)

            yield say
            await call.done_writing()
            assert await call.code() == grpc.StatusCode.OK


@asynccontextmanager
async def running_edge(directory: Path, **changes: Any) -> AsyncIterator[Edge]:
    seen = Seen()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(backend(seen))
        web = await stack.enter_async_context(page(directory / "page"))
        config = EnvoyConfig(
            listen=Endpoint("127.0.0.1", 0),
            services=dict.fromkeys(SERVICES, (behind,)),
            edge=(web,),
            jwks_file=directory / "secret.json",
            access_log=directory / "access.log",
            requests_per_minute=100_000,
            allowed_origins=("https://app.example",),
        )
        write_secret(directory / "secret.json")
        config = replace(config, **changes)
        envoy = await stack.enter_async_context(EnvoyProcess(config, directory / "envoy", concurrency=1))
        yield Edge(envoy, config, seen)


async def until(get: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Waits until `get` gives `wanted`; fails after 10 s with what it gave last."""
    last: object = None
    try:
        async with asyncio.timeout(10):
            while (last := await get()) != wanted:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{last!r} did not become {wanted!r} within 10 s") from None

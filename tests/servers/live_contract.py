"""A mesh whose contract changes while streams are open: real chat, page and Envoy, one model that waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.servers.chat_room import ScriptedModel, ScriptedSearch
from tests.servers.chat_server import running_chat
from tests.servers.transports import Stream, Transports, take, text_of, transports, turn
from weft.v1 import chat_pb2_grpc, common_pb2, retrieval_pb2, retrieval_pb2_grpc
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.edge import ChatSockets, build_app, serve
from weftd.envoy import Endpoint, EnvoyConfig, EnvoyProcess
from weftd.envoy.config import contract_descriptors
from weftd.keys import ensure_keys
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

WORDS = ("one ", "two ", "three ", "four.")
_SERVICE = "weft.v1.RetrievalService"
_LIMIT_S = 10.0


def with_call(descriptors: bytes, name: str) -> bytes:
    """The contract with one RPC more, `RetrievalService.<name>`, also at `GET /api/v1/<name>`."""
    files = FileDescriptorSet.FromString(descriptors)
    service = next(s for file in files.file for s in file.service if s.name == "RetrievalService")
    method = service.method.add(
        name=name, input_type=".weft.v1.SearchRequest", output_type=".weft.v1.SearchResponse"
    )
    method.options.Extensions[annotations_pb2.http].get = f"/api/v1/{name}"
    return files.SerializeToString()


class WaitingModel(ScriptedModel):
    """Writes half of its words and waits until `go_on`."""

    def __init__(self) -> None:
        super().__init__(WORDS)
        self._gate = asyncio.Event()

    def go_on(self) -> None:
        """For all that wait now."""
        self._gate.set()
        self._gate = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        gate, written = self._gate, 0
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                if written == len(WORDS) // 2:
                    await gate.wait()
                written += 1
                yield event


class LiveMesh:
    """`contract` is the file that Envoy follows."""

    def __init__(
        self, envoy: EnvoyProcess, config: EnvoyConfig, contract: Path, model: WaitingModel, over: Transports
    ) -> None:
        self.envoy = envoy
        self.config = config
        self.contract = contract
        self._model = model
        self._over = over
        self._channel = over.channel

    async def open(self, count: int) -> list[Stream]:
        """So many turns, over all transports in turn, each in its midst: two of four words have come."""
        ways = (self._over.grpc, self._over.converse, self._over.web, self._over.rest, self._over.ws)
        streams: list[Stream] = []
        for i in range(count):
            streams.append(await ways[i % len(ways)](turn("go on")))
            await _text(streams[-1], "".join(WORDS[:2]))
        return streams

    async def finish(self, streams: Sequence[Stream]) -> int:
        """Lets them all end; how many ended otherwise than with the rest of the text and `done`."""
        self._model.go_on()
        rests = await asyncio.gather(*(take(stream) for stream in streams), return_exceptions=True)
        return sum(
            isinstance(rest, BaseException)
            or not rest
            or rest[-1].type != "done"
            or text_of(rest) != "".join(WORDS[2:])
            for rest in rests
        )

    async def answers(self, name: str) -> bool:
        """Whether the RPC of that name answers over gRPC and over REST."""
        call = self._channel.unary_unary(
            f"/{_SERVICE}/{name}",
            request_serializer=retrieval_pb2.SearchRequest.SerializeToString,
            response_deserializer=retrieval_pb2.SearchResponse.FromString,
        )
        try:
            over_grpc = await call(retrieval_pb2.SearchRequest(query="x"), metadata=self._over.metadata)
        except grpc.aio.AioRpcError:
            return False
        over_rest = await self._over.http.get(f"/api/v1/{name}", params={"query": "x"})
        if over_rest.status_code != 200:
            return False
        return bool(over_grpc.results[0].content == over_rest.json()["results"][0]["content"] == f"{name}: x")

    async def answers_within(self, name: str, since: float) -> float:
        """Seconds from `since` (`time.monotonic()`) until the RPC answered; TimeoutError after 10 s."""
        async with asyncio.timeout(_LIMIT_S):
            while not await self.answers(name):
                await asyncio.sleep(0.005)
        return time.monotonic() - since


async def _text(stream: Stream, wanted: str) -> None:
    text = ""
    async with asyncio.timeout(_LIMIT_S):
        while len(text) < len(wanted):
            event = await stream.read()
            assert event is not None
            text += event.content
    assert text == wanted


class _Retrieval(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Serves the calls that the contract does not have yet, of any of these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def add(self, _servicer: Any, server: grpc.aio.Server) -> None:
        retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(self, server)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(name),
                retrieval_pb2.SearchRequest.FromString,
                retrieval_pb2.SearchResponse.SerializeToString,
            )
            for name in self._names
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))


def _answering(name: str) -> Any:
    async def answer(request: Any, _context: Any) -> Any:
        found = common_pb2.Reference(id=1, content=f"{name}: {request.query}")
        return retrieval_pb2.SearchResponse(results=[found])

    return answer


@asynccontextmanager
async def live_mesh(directory: Path, names: Sequence[str]) -> AsyncIterator[LiveMesh]:
    """`names` are the calls that its server has and its contract has not."""
    keys, contract = directory / "jwks.json", directory / "contract.binpb"
    await asyncio.to_thread(ensure_keys, keys)
    await asyncio.to_thread(contract.write_bytes, contract_descriptors())
    url = f"sqlite:///{directory / 'records.db'}"
    await asyncio.to_thread(migrate, url)
    model = WaitingModel()
    async with AsyncExitStack() as stack:
        records = Records(url)
        stack.push_async_callback(records.close)
        chat = await stack.enter_async_context(running_chat(records, keys, model, ScriptedSearch()))
        verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=keys)
        retrieval = _Retrieval(names)
        server = build_server(
            [Service(_SERVICE, retrieval, retrieval.add)],
            CallInterceptor(verifier, Drain(1.0)),
            Health([_SERVICE]),
        )
        behind = Endpoint("127.0.0.1", bind(server, "127.0.0.1:0"))
        await server.start()
        stack.push_async_callback(server.stop, None)
        rooms = dict.fromkeys(("knowledge", "retrieval", "models"), (behind,))
        host, _, port = chat.address.rpartition(":")
        config = EnvoyConfig(
            listen=Endpoint("127.0.0.1", 0),
            services={**rooms, "chat": (Endpoint(host, int(port)),)},
            edge=(await stack.enter_async_context(_page(directory, chat.address)),),
            jwks_file=keys,
            access_log=directory / "access.log",
            requests_per_minute=1_000_000,
        )
        envoy = await stack.enter_async_context(
            EnvoyProcess(config, directory / "envoy", concurrency=2, contract=contract)
        )
        token = mint(
            keys, issuer="weft", audience="weft", tenant="acme", subject="u", roles=["member"], ttl_s=600
        )
        over = await stack.enter_async_context(transports(str(envoy.address), token))
        yield LiveMesh(envoy, config, contract, model, over)


@asynccontextmanager
async def _page(directory: Path, chat: str) -> AsyncIterator[Endpoint]:
    peers = Peers()
    sockets = ChatSockets(peers.stub(chat_pb2_grpc.ChatServiceStub, "chat", chat), Drain(1.0))
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(build_app(directory / "page", chat=sockets), "127.0.0.1", 0, on_ready=ready.set_result)
    )
    try:
        yield Endpoint("127.0.0.1", await ready)
    finally:
        serving.cancel()
        await asyncio.wait([serving])
        await peers.close()

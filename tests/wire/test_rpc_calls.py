"""A real server and a real channel: what a caller sees of the runtime that all services share."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

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
from weftd.rpc.health import Dependency, Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server

KEYS = Path(tempfile.mkdtemp()) / "jwks.json"
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


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running(Mesh()) as mesh:
        yield mesh


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


async def test_a_call_knows_its_caller_and_answers_with_the_request_id(mesh: Mesh) -> None:
    call = mesh.stub.ListModels(
        models_request(), metadata=bearer(x_request_id="r-1", traceparent="00-a-b-01"), timeout=5
    )
    await call
    assert ("x-request-id", "r-1") in tuple(await call.initial_metadata())
    known = mesh.models.callers[0]
    assert (known.tenant, known.subject, known.request_id) == ("acme", "u1", "r-1")
    assert known.traceparent == "00-a-b-01"
    assert 4 < (known.time_left_s() or 0) <= 5


async def test_a_missing_request_id_is_made(mesh: Mesh) -> None:
    call = mesh.stub.ListModels(models_request(), metadata=bearer())
    await call
    made = dict(tuple(await call.initial_metadata()))["x-request-id"]
    assert len(made) == 32
    assert mesh.models.callers[0].request_id == made
    assert mesh.models.callers[0].deadline is None


@pytest.mark.parametrize(
    ("metadata", "code", "wanted"),
    [
        ([], "UNAUTHENTICATED", "TOKEN_INVALID"),
        ([("authorization", "Basic eDp5")], "UNAUTHENTICATED", "TOKEN_INVALID"),
        ([("authorization", "Bearer ")], "UNAUTHENTICATED", "TOKEN_INVALID"),
        (bearer() + bearer(), "UNAUTHENTICATED", "TOKEN_INVALID"),
        (bearer(x_tenant_id="other"), "PERMISSION_DENIED", "TENANT_MISMATCH"),
        (bearer(x_weft_requested_tenant="other", x_tenant_id="acme"), "PERMISSION_DENIED", "TENANT_MISMATCH"),
        (bearer(token(roles=())), "PERMISSION_DENIED", "ROLE_MISSING"),
        (bearer(x_request_id="a b"), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (bearer(x_request_id="a" * 129), "INVALID_ARGUMENT", "INVALID_FIELD"),
    ],
)
async def test_who_may_not_call_is_told_why(mesh: Mesh, metadata: Any, code: str, wanted: str) -> None:
    for call in (
        mesh.stub.ListModels(models_request(), metadata=metadata),
        mesh.stub.Generate(generate("endless"), metadata=metadata).read(),
        mesh.search.StreamSearch(iter(()), metadata=metadata).read(),
    ):
        error = await refused(call)
        assert (error.code().name, reason(error)) == (code, wanted)
    assert mesh.models.callers == []


async def test_headers_may_be_as_large_as_the_edge_lets_through(mesh: Mesh) -> None:
    await mesh.stub.ListModels(models_request(), metadata=bearer(x_more="x" * (60 << 10)))


async def test_an_error_names_fields_and_fits_into_trailers(mesh: Mesh) -> None:
    error = await refused(mesh.stub.ListModels(models_request("field"), metadata=bearer()))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = details(error, error_details_pb2.BadRequest).field_violations
    assert [field.field for field in fields] == ["page_token", "page_size"]


async def test_bytes_that_are_no_message_are_an_invalid_argument(mesh: Mesh) -> None:
    for raw in (
        mesh.channel.unary_unary("/weft.v1.ModelService/ListModels")(b"\xff\xff", metadata=bearer()),
        mesh.channel.stream_stream("/weft.v1.RetrievalService/StreamSearch")(
            iter([b"\xff"]), metadata=bearer()
        ).read(),
    ):
        assert reason(await refused(raw)) == "INVALID_FIELD"


async def test_an_unknown_fault_is_internal_and_keeps_its_text(
    mesh: Mesh, capfd: pytest.CaptureFixture[str]
) -> None:
    error = await refused(mesh.stub.ListModels(models_request("secret"), metadata=bearer(x_request_id="r-7")))
    assert (error.code(), reason(error)) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "r-7" in (error.details() or "")
    assert "secret words" not in str(error)
    out, err = capfd.readouterr()
    assert "ValueError" in out + err
    assert "secret words" not in out + err


async def test_a_cancelled_child_is_an_error_and_not_a_hang(mesh: Mesh) -> None:
    error = await refused(mesh.stub.ListModels(models_request("child"), metadata=bearer(), timeout=10))
    assert reason(error) == "INTERNAL"


async def test_an_error_in_mid_stream_comes_after_every_message(mesh: Mesh) -> None:
    call = mesh.stub.Generate(generate("broken"), metadata=bearer())
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        while (event := await call.read()) is not grpc.aio.EOF:
            seen.append(event.seq)
            await asyncio.sleep(0.002)
    assert seen == list(range(1, 51))
    assert reason(raised.value) == "MODEL_BROKEN"
    assert details(raised.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500


async def test_an_error_in_a_task_group_keeps_its_reason(mesh: Mesh) -> None:
    error = await refused(mesh.stub.Generate(generate("group"), metadata=bearer()).read())
    assert (error.code(), reason(error)) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert details(error, error_details_pb2.ErrorInfo).metadata == {"model_id": "m"}


@pytest.mark.parametrize("model", ["endless", "silent"])
async def test_a_cancelled_call_closes_its_generator_at_once(mesh: Mesh, model: str) -> None:
    call = mesh.stub.Generate(generate(model), metadata=bearer())
    async with asyncio.timeout(5):
        await mesh.models.began.wait()
    call.cancel()
    async with asyncio.timeout(0.5):
        await mesh.models.closed.wait()
    made = mesh.models.made
    await asyncio.sleep(0.02)
    assert mesh.models.made == made
    assert mesh.drain.open_calls == 0


async def test_a_passed_deadline_closes_the_generator(mesh: Mesh) -> None:
    error = await refused(mesh.stub.Generate(generate("silent"), metadata=bearer(), timeout=0.1).read())
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(0.5):
        await mesh.models.closed.wait()


async def test_a_reader_that_stops_stops_the_writer(mesh: Mesh) -> None:
    call = mesh.stub.Generate(generate("flood"), metadata=bearer())
    await call.read()
    await asyncio.sleep(0.2)
    held = mesh.models.made
    assert held < 500
    while await call.read() is not grpc.aio.EOF:
        pass
    assert mesh.models.made == 1000


async def test_a_bidi_stream_ends_when_its_token_runs_out(mesh: Mesh) -> None:
    call = mesh.search.StreamSearch(metadata=bearer(token(ttl_s=1.9)))
    await call.write(retrieval_pb2.StreamSearchRequest(query_id=1))
    assert (await call.read()).query_id == 1
    started = time.monotonic()
    error = await refused(call.read())
    assert (error.code().name, reason(error)) == ("UNAUTHENTICATED", "TOKEN_INVALID")
    assert time.monotonic() - started < 2.5
    async with asyncio.timeout(0.5):
        await mesh.retrieval.closed.wait()


def act_for(mesh: Mesh, deadline_s: float | None = None) -> None:
    caller.enter(
        caller.Caller(
            tenant="acme",
            subject="u1",
            roles=frozenset({"member"}),
            request_id="r-9",
            token=token(),
            token_expires_at=time.time() + 60,
            deadline=None if deadline_s is None else time.monotonic() + deadline_s,
            traceparent="00-x-y-01",
        )
    )


async def test_a_peer_is_called_on_the_callers_behalf(mesh: Mesh) -> None:
    act_for(mesh, deadline_s=3)
    assert (await mesh.peers.unary(mesh.peer.ListModels, models_request())).next_page_token == "fine"
    known = mesh.models.callers[0]
    assert (known.tenant, known.request_id, known.traceparent) == ("acme", "r-9", "00-x-y-01")
    assert 2 < (known.time_left_s() or 0) < 3


async def test_a_peers_errors_are_the_same_errors_here(mesh: Mesh) -> None:
    act_for(mesh)
    with pytest.raises(errors.InvalidArgument) as invalid:
        await mesh.peers.unary(mesh.peer.ListModels, models_request("field"))
    assert set(invalid.value.fields) == {"page_token", "page_size"}
    seen = []
    with pytest.raises(errors.Unavailable) as broken:
        async for event in mesh.peers.stream(mesh.peer.Generate, generate("broken")):
            seen.append(event.seq)  # noqa: PERF401
    assert len(seen) == 50
    assert broken.value.reason == error_reason_pb2.ERROR_REASON_MODEL_BROKEN
    assert broken.value.retry_after_s == 2.5
    with pytest.raises(errors.WeftError) as internal:
        await mesh.peers.unary(mesh.peer.ListModels, models_request("secret"))
    assert internal.value.reason == error_reason_pb2.ERROR_REASON_INTERNAL


async def test_a_peer_that_is_away_is_named(mesh: Mesh) -> None:
    act_for(mesh)
    stub = mesh.peers.stub(models_pb2_grpc.ModelServiceStub, "models", "127.0.0.1:1")
    with pytest.raises(errors.Unavailable) as away:
        await mesh.peers.unary(stub.ListModels, models_request())
    assert away.value.metadata == {"backend": "models"}
    with pytest.raises(errors.Unavailable):
        async for _ in mesh.peers.stream(stub.Generate, generate("endless")):
            pass


async def test_a_peer_that_is_stopped_at_once_is_unavailable(mesh: Mesh) -> None:
    act_for(mesh)
    stream = mesh.peers.stream(mesh.peer.Generate, generate("endless"))
    await anext(stream)
    stopping = asyncio.create_task(mesh.server.stop(None))
    with pytest.raises(errors.Unavailable):
        async for _ in stream:
            pass
    await stopping


async def test_limits_of_time_are_told_apart(mesh: Mesh) -> None:
    act_for(mesh, deadline_s=10)
    with pytest.raises(errors.Unavailable, match="models did not answer in time"):
        await mesh.peers.unary(mesh.peer.ListModels, models_request("slow"), timeout_s=0.1)
    act_for(mesh, deadline_s=0.1)
    with pytest.raises(errors.DeadlineExceeded):
        await mesh.peers.unary(mesh.peer.ListModels, models_request("slow"))
    act_for(mesh, deadline_s=-1)
    with pytest.raises(errors.DeadlineExceeded):
        mesh.peers.stream(mesh.peer.Generate, generate("endless"))


@pytest.mark.parametrize("how", ["close", "cancel", "drop"])
async def test_a_left_peer_stream_stops_the_peer(mesh: Mesh, how: str) -> None:
    act_for(mesh)

    async def read(enough: int) -> None:
        seen = 0
        async with aclosing(mesh.peers.stream(mesh.peer.Generate, generate("endless"))) as events:
            async for _ in events:
                seen += 1
                if seen == enough:
                    break

    match how:
        case "close":
            await read(3)
        case "cancel":
            reading = asyncio.create_task(read(10**9))
            await asyncio.sleep(0.1)
            reading.cancel()
        case "drop":
            stream = mesh.peers.stream(mesh.peer.Generate, generate("endless"))
            await anext(stream)
            del stream
    async with asyncio.timeout(0.5):
        await mesh.models.closed.wait()


async def test_health_follows_the_backend_and_names_it() -> None:
    up = False

    async def ping() -> None:
        if not up:
            raise ConnectionError

    names = ["weft.v1.ModelService", "weft.v1.RetrievalService"]
    health = Health(names, [Dependency("milvus", "127.0.0.1:19530", ping, needed_by=names[1:])])
    async with running(Mesh(health)) as mesh:
        stub = health_pb2_grpc.HealthStub(mesh.channel)

        async def status_of(name: str) -> str:
            response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

        await health.check()
        assert [await status_of(name) for name in ("", *names)] == ["NOT_SERVING", "SERVING", "NOT_SERVING"]
        assert health.problems() == [
            "milvus at 127.0.0.1:19530 does not answer: start it, or mend its address"
        ]
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        up = True
        await health.check()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert health.problems() == []
        await health.drain()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (
            await refused(stub.Check(health_pb2.HealthCheckRequest(service="x")))
        ).code().name == "NOT_FOUND"


async def test_a_replaceable_backend_must_answer_once() -> None:
    up = True

    async def ping() -> None:
        if not up:
            raise ConnectionError

    health = Health(["s"], [Dependency("neo4j", "h:1", ping, replaceable=True)])
    assert health.serving("s") is False
    await health.check()
    assert health.serving("s") is True
    up = False
    await health.check()
    assert health.serving("s") is True


async def test_reflection_lists_the_services(mesh: Mesh) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(mesh.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert {"weft.v1.ModelService", "weft.v1.RetrievalService", "grpc.health.v1.Health"} <= names


async def test_a_taken_port_is_said_plainly(mesh: Mesh) -> None:
    with pytest.raises(OSError, match="another program has that port"):
        bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), mesh.address)

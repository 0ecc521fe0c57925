"""Health, reflection and the port of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.servers.rpc_mesh import (
    Mesh,
    refused,
    running,
)
from weftd.rpc.health import Dependency, Health
from weftd.rpc.server import bind


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running(Mesh()) as mesh:
        yield mesh


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

"""Calls from one service to another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.servers.rpc_mesh import (
    TRACEPARENT,
    Mesh,
    generate,
    models_request,
    running,
    token,
)
from weft.v1 import (
    error_reason_pb2,
    models_pb2_grpc,
)
from weftd import errors
from weftd.rpc import caller


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running(Mesh()) as mesh:
        yield mesh


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
            traceparent=TRACEPARENT,
        )
    )


async def test_a_peer_is_called_on_the_callers_behalf(mesh: Mesh) -> None:
    act_for(mesh, deadline_s=3)
    assert (await mesh.peers.unary(mesh.peer.ListModels, models_request())).next_page_token == "fine"
    known = mesh.models.callers[0]
    assert (known.tenant, known.request_id, known.traceparent) == ("acme", "r-9", TRACEPARENT)
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

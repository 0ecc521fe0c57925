"""A real server and a real channel: what a caller sees of the runtime that all services share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from tests.servers.rpc_mesh import (
    TRACEPARENT,
    Mesh,
    bearer,
    details,
    generate,
    models_request,
    reason,
    refused,
    running,
    token,
)
from weft.v1 import (
    retrieval_pb2,
)


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with running(Mesh()) as mesh:
        yield mesh


async def test_a_call_knows_its_caller(mesh: Mesh) -> None:
    call = mesh.stub.ListModels(
        models_request(), metadata=bearer(x_request_id="r-1", traceparent=TRACEPARENT), timeout=5
    )
    await call
    known = mesh.models.callers[0]
    assert (known.tenant, known.subject, known.request_id) == ("acme", "u1", "r-1")
    assert known.traceparent == TRACEPARENT
    assert 4 < (known.time_left_s() or 0) < 5.5  # gRPC rounds up


async def test_a_traceparent_that_is_none_goes_no_further(mesh: Mesh) -> None:
    await mesh.stub.ListModels(models_request(), metadata=bearer(traceparent="00-a-b-01"), timeout=5)
    assert mesh.models.callers[0].traceparent == ""


async def test_a_missing_request_id_is_made_and_told(mesh: Mesh) -> None:
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

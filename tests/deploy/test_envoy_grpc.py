"""gRPC and gRPC-Web through the real Envoy."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from tests.deploy.envoy_backend import SERVICES, Edge, backend, bearer, running_edge
from weft.v1 import chat_pb2, chat_pb2_grpc, common_pb2, retrieval_pb2, retrieval_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with edge.channel() as opened:
        yield opened


def question(text: str) -> chat_pb2.StreamChatRequest:
    return chat_pb2.StreamChatRequest(messages=[common_pb2.Message(role="user", content=text)])


def metadata() -> tuple[tuple[str, str], ...]:
    return tuple(bearer().items())


async def test_a_server_stream_and_a_bidi_stream(edge: Edge, channel: grpc.aio.Channel) -> None:
    call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(question("two"), metadata=metadata())
    assert [(event.type, event.seq) async for event in call] == [("delta", 1), ("done", 2)]
    async with edge.conversation() as say:
        assert [await say("你"), await say("好")] == ["你", "好"]


async def test_a_deadline_reaches_the_service(edge: Edge, channel: grpc.aio.Channel) -> None:
    await retrieval_pb2_grpc.RetrievalServiceStub(channel).Search(
        retrieval_pb2.SearchRequest(query="x"), timeout=12, metadata=metadata()
    )
    assert 11 < (edge.seen.time_left_s[-1] or 0) < 12.5  # gRPC rounds up
    call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(
        question("two"), timeout=7000, metadata=metadata()
    )
    assert [event.type async for event in call] == ["delta", "done"]
    assert 6990 < (edge.seen.time_left_s[-1] or 0) < 7020  # gRPC rounds long ones up


async def test_a_cancelled_call_and_a_passed_deadline_end_the_call_behind(
    edge: Edge, channel: grpc.aio.Channel
) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(channel)
    took_s = []
    for _ in range(5):  # the quickest counts: a busy machine adds to each
        call = stub.StreamChat(question("hold"), metadata=metadata())
        assert (await call.read()).type == "delta"
        cancelled_at = time.monotonic()
        call.cancel()
        async with asyncio.timeout(5):
            took_s.append(await edge.seen.ended.get() - cancelled_at)
    assert min(took_s) < 0.05
    late = stub.StreamChat(question("hold"), metadata=metadata(), timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        async for _ in late:
            pass
    assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(5):
        await edge.seen.ended.get()


async def test_an_error_keeps_its_details(channel: grpc.aio.Channel) -> None:
    call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(question("refuse"), metadata=metadata())
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(failed.value).details[0].Unpack(info)
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TURN_RUNNING")


async def test_without_a_token_the_reason_comes_as_details(channel: grpc.aio.Channel) -> None:
    call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(question("two"))
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call.read()
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(failed.value).details[0].Unpack(info)
    assert (failed.value.code(), info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@pytest.mark.parametrize("path", ["/weft.v1.ChatService/Nothing", "/weft.v9.Nothing/Nothing"])
async def test_an_unknown_method_is_unimplemented(channel: grpc.aio.Channel, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await channel.unary_unary(path)(b"", metadata=metadata())
    assert failed.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_health_is_open_and_reflection_needs_a_token(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICES["chat"]))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = await stub.ServerReflectionInfo([asked], metadata=metadata()).read()
    assert set(SERVICES.values()) <= {one.name for one in listed.list_services_response.service}
    assert await stub.ServerReflectionInfo().code() == grpc.StatusCode.UNAUTHENTICATED


def frames(body: bytes) -> list[tuple[int, bytes]]:
    found = []
    while body:
        kind, size = struct.unpack(">BI", body[:5])
        found.append((kind, body[5 : 5 + size]))
        body = body[5 + size :]
    return found


async def test_grpc_web_frames_messages_and_trailers(edge: Edge) -> None:
    message = question("two").SerializeToString()
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with edge.http(**web) as http:
        answer = await http.post(
            "/weft.v1.ChatService/StreamChat", content=struct.pack(">BI", 0, len(message)) + message
        )
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    (_, first), (_, second), (kind, trailers) = frames(answer.content)
    assert chat_pb2.ChatEvent.FromString(first).content == "RAG（检索"
    assert chat_pb2.ChatEvent.FromString(second).seq == 2
    assert kind == 0x80
    assert b"grpc-status:0" in trailers


async def test_grpc_web_refusals_are_statuses_too(edge: Edge) -> None:
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with edge.http() as http:
        http.headers.pop("authorization")
        answer = await http.post("/weft.v1.ChatService/StreamChat", content=bytes(5), headers=web)
    assert (answer.status_code, answer.headers["grpc-status"]) == (200, "16")
    assert answer.headers["grpc-status-details-bin"]


async def test_the_statistics_name_each_method_of_the_contract(edge: Edge, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary("/weft.v1.ChatService/Invented")(b"", metadata=metadata())
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary("/grpc.health.v1.Health/Invented")(b"")
    call = chat_pb2_grpc.ChatServiceStub(channel).StreamChat(question("two"), metadata=metadata())
    assert len([event async for event in call]) == 2
    stats = await edge.envoy.stats("grpc")
    assert stats["cluster.chat.grpc.weft_v1_ChatService.StreamChat.success"] >= 1
    assert not [name for name in stats if "Invented" in name]


async def test_with_nobody_behind_every_transport_says_so_and_when_to_retry(edge: Edge) -> None:
    """In this test only: the servers of one service go away, and come back."""
    services = dict(edge.config.services)
    async with backend(edge.seen) as gone:
        pass
    await edge.changed(services={**services, "retrieval": (gone,)})
    try:
        async with edge.http() as http:
            rest = await http.post("/api/v1/search", json={"query": "x"})
        assert (rest.status_code, rest.json()["code"]) == (503, 14)
        assert rest.json()["details"][0]["reason"] == "BACKEND_UNAVAILABLE"
        assert rest.json()["details"][1]["retry_delay"] == "1s"
        async with edge.channel() as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await retrieval_pb2_grpc.RetrievalServiceStub(channel).Search(
                    retrieval_pb2.SearchRequest(query="x"), metadata=metadata()
                )
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert len(rpc_status.from_call(failed.value).details) == 2
    finally:
        await edge.changed(services=services)

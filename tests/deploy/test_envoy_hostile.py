"""Clients that send slowly, give up often, or much at once, at the real Envoy."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from tests.deploy.envoy_backend import Edge, bearer, running_edge, until
from weft.v1 import chat_pb2, chat_pb2_grpc, common_pb2

STREAM = "/api/v1/chat/stream"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path) as running:
        yield running


@pytest.fixture
async def strict_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    """With the same limits of time, but of one second."""
    monkeypatch.setattr(sys.modules["weftd.envoy.listener"], "_HEADERS_LIMIT", "1s")
    monkeypatch.setattr(sys.modules["weftd.envoy.routes"], "_UNARY_IDLE", "1s")
    async with running_edge(tmp_path) as running:
        yield running


async def answered(edge: Edge, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """What came back until the edge closed, and after how many seconds."""
    host, _, port = edge.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began = time.monotonic()
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer, time.monotonic() - began


def head(length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in bearer().items()]
    start = f"POST {STREAM} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n"
    return (start + "\r\n".join(lines) + "\r\n\r\n").encode()


async def test_headers_that_do_not_end_are_not_waited_for(strict_edge: Edge) -> None:
    """Also where a byte comes now and then."""
    answer, took_s = await answered(
        strict_edge, b"GET /api/v1/models HTTP/1.1\r\n", *([b"x"] * 2), pause_s=0.3
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"reason":"DEADLINE_EXCEEDED"' in answer
    assert took_s < 5


async def test_a_body_that_stops_is_not_waited_for(strict_edge: Edge) -> None:
    answer, took_s = await answered(strict_edge, head(1000) + b'{"messages": [')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"reason":"DEADLINE_EXCEEDED"' in answer
    assert took_s < 5


@pytest.mark.parametrize("how", ["body", "chunked", "query"])
async def test_a_refusal_does_not_send_back_what_came(edge: Edge, how: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"top_k": "'
        yield b"a" * 1_000_000 + b'"}'

    async with edge.http() as http:
        match how:
            case "body":
                answer = await http.post(STREAM, json={"top_k": "a" * 1_000_000})
            case "chunked":
                answer = await http.post(STREAM, content=chunks())
            case _:
                answer = await http.post(f"{STREAM}?top_k={'a' * 20_000}")
    assert (answer.status_code, answer.json()["code"]) == (400, 3)
    assert len(answer.content) < 500


async def test_who_gives_up_many_calls_keeps_the_connection(edge: Edge) -> None:
    """A proxy carries the pages of many users on one. Above 1,000 at once nghttp2 takes it for an attack."""
    async with edge.conversation() as say, edge.channel() as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        metadata = tuple(bearer().items())
        kept = stub.Converse(metadata=metadata)
        hold = chat_pb2.StreamChatRequest(messages=[common_pb2.Message(role="user", content="hold")])
        for _ in range(9):
            calls = [stub.StreamChat(hold, metadata=metadata) for _ in range(100)]
            await asyncio.gather(*(call.read() for call in calls))
            for call in calls:
                call.cancel()
        await kept.write(chat_pb2.ConverseRequest(turn=hold))
        assert (await kept.read()).event.content == "hold"
        assert await say("still here") == "still here"
        await kept.done_writing()
        assert await kept.code() == grpc.StatusCode.OK


async def test_a_flood_of_connections_that_say_nothing_stops_nobody(edge: Edge) -> None:
    host, _, port = edge.address.rpartition(":")
    silent = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(300)))
    try:
        async with edge.http() as http:

            async def works() -> int:
                return (await http.get("/api/v1/conversations")).status_code

            await until(works, 200)
    finally:
        for _, writer in silent:
            writer.close()

"""Clients of chat that stop reading, over real calls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.servers.chat_room import ScriptedModel, ScriptedSearch, question, until
from tests.servers.chat_server import ChatServer, bearer, running_chat
from weft.v1 import chat_pb2, chat_pb2_grpc
from weftd.keys import ensure_keys
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

PIECE = "第一段。" * 500
TEXT = PIECE * 100
Opened = tuple[ChatServer, ScriptedModel, chat_pb2_grpc.ChatServiceStub, Any]


@pytest.fixture
async def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opened]:
    """Of a model that writes 1.2 MB at once, for a client whose own buffers hold 64 KiB."""
    monkeypatch.setattr(sys.modules["weftd.rpc.stall"], "STALL_LIMIT_S", 0.4)
    url, keys = f"sqlite:///{tmp_path / 'records.db'}", tmp_path / "jwks.json"
    ensure_keys(keys)
    migrate(url)
    records, model = Records(url), ScriptedModel([PIECE] * 100)
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    async with (
        running_chat(records, keys, model, ScriptedSearch(), resume_grace_s=5) as server,
        grpc.aio.insecure_channel(server.address, options=options) as channel,
    ):
        yield server, model, chat_pb2_grpc.ChatServiceStub(channel), bearer(keys)
    await records.close()


async def stream(stub: chat_pb2_grpc.ChatServiceStub, metadata: Any) -> Any:
    return stub.StreamChat(question(resumable=True), metadata=metadata)


async def converse(stub: chat_pb2_grpc.ChatServiceStub, metadata: Any) -> Any:
    call: Any = stub.Converse(metadata=metadata)
    await call.write(chat_pb2.ConverseRequest(turn=question(resumable=True)))
    return call


async def read_on(call: Any) -> tuple[list[chat_pb2.ChatEvent], grpc.aio.AioRpcError | None]:
    """All that comes, and the error at its end."""
    events = []
    try:
        async with asyncio.timeout(10):
            while (message := await call.read()) is not grpc.aio.EOF:
                events.append(message.event if isinstance(message, chat_pb2.ConverseResponse) else message)
                if events[-1].type == "done":
                    break
    except grpc.aio.AioRpcError as error:
        return events, error
    return events, None


@pytest.mark.parametrize("ask", [stream, converse])
async def test_who_does_not_read_is_told_when_it_reads_again(chat: Opened, ask: Callable[..., Any]) -> None:
    """All that was on its way, then why it ended. The turn is whole, and read on from there."""
    server, model, stub, metadata = chat
    call = await ask(stub, metadata)
    events = [await call.read()]
    await until(lambda: model.open == 0 and server.turns.running == 0)  # it did not wait for its reader
    await asyncio.sleep(1.2)
    late, error = await read_on(call)
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status.details[0].Unpack(info) and status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.seconds) == ("OVERLOADED", 1)
    assert "Resume" in (error.details() or "")

    events = [getattr(event, "event", event) for event in [*events, *late]]
    seen = events[-1].seq
    assert [event.seq for event in events] == list(range(1, seen + 1))
    assert 0 < seen < 102
    key = {"conversation_id": "c1", "request_id": "r1"}
    again = stub.ResumeChat(chat_pb2.ResumeChatRequest(**key, after_seq=seen), metadata=metadata)
    rest, error = await read_on(again)
    assert error is None
    assert "".join(event.content for event in [*events, *rest]) == TEXT
    assert rest[-1].type == "done"


async def test_who_reads_again_in_time_gets_all_of_it(chat: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["weftd.rpc.stall"], "STALL_LIMIT_S", 30)
    server, model, stub, metadata = chat
    call = await stream(stub, metadata)
    first = await call.read()
    await until(lambda: model.open == 0 and server.turns.running == 0)
    events, error = await read_on(call)
    assert error is None
    assert "".join(event.content for event in [first, *events]) == TEXT

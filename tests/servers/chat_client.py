"""A client of a real chat server, what is behind it, and what its calls give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.servers.chat_room import WORDS, ScriptedModel, ScriptedSearch, question, until
from tests.servers.chat_server import ChatServer, bearer, chat_stub, running_chat
from weft.v1 import chat_pb2
from weftd.keys import ensure_keys
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

TEXT = "".join(WORDS)
CLOSED_WITHIN_S = 0.05


class Chat:
    """A server, a client of it, and what is behind it."""

    def __init__(self, server: ChatServer, keys: Path, model: ScriptedModel, search: ScriptedSearch) -> None:
        self.server, self.keys, self.model, self.search = server, keys, model, search
        self.channel, self.stub = chat_stub(server.address)
        self.metadata = bearer(keys)

    def ask(self, request: chat_pb2.StreamChatRequest | None = None, **options: Any) -> Any:
        return self.stub.StreamChat(request or question(), metadata=self.metadata, **options)

    def resume(self, after_seq: int = 0, **more: Any) -> Any:
        key = {"conversation_id": "c1", "request_id": "r1"} | more
        request = chat_pb2.ResumeChatRequest(**key, after_seq=after_seq, resumable=True)
        return self.stub.ResumeChat(request, metadata=self.metadata)

    async def closed(self, since: float, within_s: float = CLOSED_WITHIN_S) -> None:
        """The model behind was closed in time and wrote nothing afterwards."""
        await until(lambda: self.model.open == 0)
        assert self.model.closed_at[-1] - since < within_s
        written = self.model.written
        self.model.allow()
        await until(lambda: self.server.turns.running == 0)
        assert self.model.written == written


@asynccontextmanager
async def chatting(directory: Path) -> AsyncIterator[Chat]:
    """With records and keys in `directory`."""
    url, keys = f"sqlite:///{directory / 'records.db'}", directory / "jwks.json"
    ensure_keys(keys)
    migrate(url)
    records, model, search = Records(url), ScriptedModel(paced=True), ScriptedSearch()
    async with running_chat(records, keys, model, search, resume_grace_s=0.3) as server:
        client = Chat(server, keys, model, search)
        yield client
        await client.channel.close()
    await records.close()


async def take(call: Any, model: ScriptedModel, count: int) -> list[chat_pb2.ChatEvent]:
    got = []
    for _ in range(count):
        model.allow(1)
        got.append(await call.read())
    return got


async def rest(call: Any) -> AsyncIterator[Any]:
    """What is still to come, for a call that is read message by message."""
    while (message := await call.read()) is not grpc.aio.EOF:
        yield message


def reason(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            assert status_pb2.Status.FromString(value).details[0].Unpack(info)
            return info.reason
    return ""


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if hasattr(call, "read"):
            async for _ in rest(call):
                pass
        else:
            await call
    return raised.value.code(), reason(raised.value)

"""Many idle `Converse` streams at once: none is lost, and turns on some of them are answered."""

from __future__ import annotations

import uuid
from typing import Any

import grpc

from tests.servers.mesh import Mesh
from weft.v1.chat_pb2 import ConverseRequest, StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

# More than gRPC lets wait to be taken in by default, and it refuses some of a third of them.
STREAMS = 3_000
TURNS = 20


async def answered(call: Any) -> list[str]:
    unique = uuid.uuid4().hex
    question = [Message(role="user", content="Hello")]
    turn = StreamChatRequest(conversation_id=unique, request_id=unique, messages=question)
    await call.write(ConverseRequest(turn=turn))
    types = []
    while not types or types[-1] not in ("done", "error"):
        types.append((await call.read()).event.type)
    return types


async def ended(call: Any) -> grpc.StatusCode:
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    code: grpc.StatusCode = await call.code()
    return code


async def test_a_crowd_of_streams_is_taken_in_and_kept(mesh: Mesh) -> None:
    metadata = (("authorization", f"Bearer {mesh.token(f't-{uuid.uuid4().hex[:8]}')}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = ChatServiceStub(channel)
        calls = [stub.Converse(metadata=metadata) for _ in range(STREAMS)]
        for call in calls[:: STREAMS // TURNS]:
            assert (await answered(call))[-1] == "done"
        assert {await ended(call) for call in calls} == {grpc.StatusCode.OK}

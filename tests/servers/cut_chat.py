"""A chat service with one scripted answer, and a connection to it that can be cut, for tests of the SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from weft.v1 import chat_pb2, chat_pb2_grpc
from weft.v1.common_pb2 import Reference, Usage

TEXT = ["Retrieval", "-Augmented ", "Generation：", "检索增强", "生成。[1]"]
ANSWER = [
    *(chat_pb2.ChatEvent(type="delta", content=text, seq=seq) for seq, text in enumerate(TEXT, 1)),
    chat_pb2.ChatEvent(type="refs", references=[Reference(id=1, name="a.pdf")], degraded=["graph"], seq=6),
    chat_pb2.ChatEvent(type="done", usage=Usage(total_tokens=9), seq=7),
]


class Chat(chat_pb2_grpc.ChatServiceServicer):
    """Keeps turns by conversation and request id, as the contract says; does what the question says."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.requests: list[chat_pb2.StreamChatRequest] = []
        self.tokens: list[str] = []
        self.cancelled: dict[str, float] = {}
        self.cancels = asyncio.Event()
        self.cut_after: dict[int, str] = {}
        self.good_token = ""
        self.cut: Any = None

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        metadata = dict(context.invocation_metadata())
        self.tokens.append(metadata["authorization"])
        if self.good_token and metadata["authorization"] != f"Bearer {self.good_token}":
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
        assert metadata["x-request-id"] == request.request_id
        key = (request.conversation_id, request.request_id)
        if key not in self.started:
            self.started.append(key)
        self.requests.append(request)
        async for event in self._answer(request, context):
            yield event

    async def _answer(
        self, request: chat_pb2.StreamChatRequest, context: Any
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        match request.messages[-1].content:
            case "refused":
                await _abort(context, grpc.StatusCode.FAILED_PRECONDITION, "TURN_RUNNING")
            case "fails":
                yield ANSWER[0]
                yield chat_pb2.ChatEvent(type="error", reason="MODEL_BROKEN", message="It broke.", seq=2)
                return
            case "endless":
                for seq in range(1, 10**6):
                    if request.request_id in self.cancelled:
                        yield chat_pb2.ChatEvent(
                            type="error", reason="TURN_CANCELLED", message="Stopped.", seq=seq
                        )
                        return
                    yield chat_pb2.ChatEvent(type="delta", content="x", seq=seq)
                    await asyncio.sleep(0.005)
            case "silent":
                await asyncio.Event().wait()
            case "late" if len(self.requests) == 1:
                await asyncio.sleep(0.5)
                self.cut()
        for event in ANSWER[request.after_seq :]:
            yield event
            match self.cut_after.pop(event.seq, ""):
                case "connection":
                    await asyncio.sleep(0.02)  # so that the event is on its way
                    self.cut()
                    await asyncio.sleep(10)
                case "status":
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "going")
                case "reset":
                    await context.abort(grpc.StatusCode.INTERNAL, "Received RST_STREAM")
                case "end":
                    return
                case "repeat":
                    yield event
                case "gap":
                    yield ANSWER[event.seq + 1]

    async def ResumeChat(
        self, request: chat_pb2.ResumeChatRequest, context: Any
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        if request.request_id == "unknown":
            await _abort(context, grpc.StatusCode.NOT_FOUND, "TURN_NOT_FOUND")
        for event in ANSWER[request.after_seq :]:
            yield event
            if self.cut_after.pop(event.seq, ""):
                return

    async def CancelTurn(
        self, request: chat_pb2.CancelTurnRequest, context: Any
    ) -> chat_pb2.CancelTurnResponse:
        self.cancelled.setdefault(request.request_id, time.monotonic())
        self.cancels.set()
        return chat_pb2.CancelTurnResponse(status="cancelled")


async def _abort(context: Any, code: grpc.StatusCode, reason: str) -> None:
    status = status_pb2.Status(code=code.value[0], message="No.")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="weft"))
    await context.abort(code, "No.", (("grpc-status-details-bin", status.SerializeToString()),))


class Wire:
    """A TCP relay in front of the server, whose connections can be cut as a lost network cuts them."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.refuse = False

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.cut()
        self._server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ends = {writer, up_writer}
        self._writers |= ends

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                for end in ends:
                    end.transport.abort()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        self._writers -= ends

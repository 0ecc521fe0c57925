"""A bare server for `bench.idle_streams`, on the address in WEFT_CHAT_ADDRESS: `Converse` that answers each
request with one message, on grpc.aio and uvloop, without interceptors; and nothing else."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import uvloop

from bench.bare import serve_bare
from weft.v1.chat_pb2 import ChatEvent, ConverseRequest, ConverseResponse
from weft.v1.chat_pb2_grpc import ChatServiceServicer, add_ChatServiceServicer_to_server


class BareConverse(ChatServiceServicer):
    async def Converse(
        self, request_iterator: AsyncIterator[ConverseRequest], context: Any
    ) -> AsyncGenerator[ConverseResponse, None]:
        async for request in request_iterator:
            yield ConverseResponse(
                request_id=request.turn.request_id, event=ChatEvent(type="done", content="", seq=1)
            )


def add(server: grpc.aio.Server) -> None:
    add_ChatServiceServicer_to_server(BareConverse(), server)  # type: ignore[abstract]  # only the one RPC


if __name__ == "__main__":
    uvloop.run(serve_bare(os.environ["WEFT_CHAT_ADDRESS"], add))

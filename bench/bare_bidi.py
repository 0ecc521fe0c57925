"""A bare server for `bench.idle_streams`, on the address in WEFT_CHAT_ADDRESS: `Converse` that answers each
request with one message, on grpc.aio and uvloop, without interceptors; and nothing else."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

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


async def serve(address: str) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 20_000)])
    add_ChatServiceServicer_to_server(BareConverse(), server)  # type: ignore[abstract]  # only the one RPC
    known = health.HealthServicer()
    for name in ("", *(f"weft.v1.{room}Service" for room in ("Chat", "Retrieval", "Knowledge", "Model"))):
        await known.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(known, server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(os.environ["WEFT_CHAT_ADDRESS"]))

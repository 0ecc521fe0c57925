"""Unary calls per second and core through Envoy, beside a bare echo.

    .venv/bin/python -m bench.unary_cost

`GetConversation` (a read of the store: a conversation of four messages) and `ListModels` (none) beside an
echo of a bare grpc.aio server behind the same Envoy. Closed loop; the three take turns; medians of the runs.
Calls per second and core are calls by the processor time of the Python servers; Envoy's is told apart.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import psutil
import uvloop

from bench.setting import spread, table
from bench.stream_cost import processor_s, served, turn
from tests.servers.mesh import Mesh
from weft.v1.chat_pb2 import GetConversationRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.models_pb2 import ListModelsRequest
from weft.v1.models_pb2_grpc import ModelServiceStub

RUNS = 5
CALLERS = 64
CALLS = 60
CONVERSATION = "talk"
KINDS = ("echo", "GetConversation", "ListModels")
# The least share of the bare echo's calls per second and core.
MARKS = {"GetConversation": 30, "ListModels": 55}


@dataclass
class Figures:
    """One value for each run."""

    per_core: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    envoy_ms: list[float] = field(default_factory=list)


async def run(mesh: Mesh, process: psutil.Process, kind: str, figures: Figures) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        chat, models = ChatServiceStub(channel), ModelServiceStub(channel)

        def call() -> Awaitable[object]:
            if kind == "ListModels":
                return models.ListModels(ListModelsRequest(), metadata=metadata)
            return chat.GetConversation(
                GetConversationRequest(conversation_id=CONVERSATION), metadata=metadata
            )

        await _closed_loop(call, 5)
        envoy = _envoy_s(mesh)
        cpu_s, began = processor_s(process), time.perf_counter()
        await _closed_loop(call, CALLS)
        took_s, cpu_s = time.perf_counter() - began, processor_s(process) - cpu_s
    count = CALLERS * CALLS
    figures.per_core.append(count / cpu_s)
    figures.per_second.append(count / took_s)
    figures.envoy_ms.append((_envoy_s(mesh) - envoy) / count * 1e3)


async def _closed_loop(call: Callable[[], Awaitable[object]], calls: int) -> None:
    async def caller() -> None:
        for _ in range(calls):
            await call()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def _envoy_s(mesh: Mesh) -> float:
    return processor_s(psutil.Process(mesh.processes["envoy"].pid))


async def _talk(mesh: Mesh) -> None:
    metadata = (("authorization", f"Bearer {mesh.token()}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        for _ in range(2):
            await turn(ChatServiceStub(channel), metadata, conversation_id=CONVERSATION)


def main() -> None:
    figures = {kind: Figures() for kind in KINDS}
    with served("bare") as bare, served("weft") as weft:
        uvloop.run(_talk(weft[0]))
        for _ in range(RUNS):
            for kind in KINDS:
                uvloop.run(run(*(bare if kind == "echo" else weft), kind, figures[kind]))
    echo = statistics.median(figures["echo"].per_core)
    rows = [
        [
            kind,
            spread(measured.per_core, ".0f"),
            f"{statistics.median(measured.per_core) / echo:.0%}",
            f"{MARKS[kind]} %" if kind in MARKS else "",
            spread(measured.per_second, ".0f"),
            spread(measured.envoy_ms, ".3f"),
        ]
        for kind, measured in figures.items()
    ]
    table(
        ["call", "calls per second and core", "of the echo", "mark", "calls per second", "Envoy, ms a call"],
        rows,
    )


if __name__ == "__main__":
    main()

"""What an idle `Converse` stream costs, beside a bare one's, and whether 10,000 of them slow down a turn.

    .venv/bin/python -m bench.idle_streams          # [streams]

Weft (all services in one process, a model that answers at once, nothing searched) and a bare server that
only echoes stand behind the same Envoy, one after the other. Memory is the growth of the resident memory of
all server processes, Envoy among them, by the stream. Then one turn each on 100 of the streams, one after the
other, beside the same on a server without others. At the end every stream is half-closed: those that do not
end with OK are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import psutil
import uvloop

from bench.setting import percentile, servers_behind_envoy, table
from tests.servers.mesh import Mesh, free_port
from weft.v1.chat_pb2 import ConverseRequest, StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

STREAMS = 10_000
STREAMS_OF_A_CHANNEL = 500
TURNS = 100
# So many are opened and closed before: what an allocator takes once is no stream's.
FIRST = 500
HELD_S = 20.0
PROGRAMS = {"bare": ["bench.bare_bidi"], "Weft": ["bench.bare", "weft"]}
MARKS = {"memory": 1.4, "first token": 2.0}


@dataclass
class Figures:
    """`kib` by process and stream; first tokens in milliseconds, with and without the idle streams."""

    kib: dict[str, float]
    empty_ms: list[float]
    beside_ms: list[float]
    lost: int


class Server:
    """One kind of server behind Envoy."""

    def __init__(self, mesh: Mesh, envoy_metrics: str) -> None:
        self.mesh = mesh
        self._metrics = f"http://{envoy_metrics}/stats/prometheus"
        self._token = mesh.token("bench")
        self._channels: list[grpc.aio.Channel] = []

    def resident(self) -> dict[str, float]:
        """KiB of Envoy and of the Python server; children count with their parent."""
        found = {}
        for name, process in self.mesh.processes.items():
            known = psutil.Process(process.pid)
            family = [known, *known.children(recursive=True)]
            found["Envoy" if name == "envoy" else "Python"] = (
                sum(each.memory_info().rss for each in family) / 1024
            )
        return found

    async def active(self) -> int:
        """Streams that Envoy has open to the chat service."""
        async with httpx.AsyncClient() as http:
            told = (await http.get(self._metrics)).text
        found = re.search(r'envoy_cluster_upstream_rq_active\{envoy_cluster_name="chat"\} (\d+)', told)
        return int(found[1]) if found else 0

    async def open(self, count: int) -> list[Any]:
        """So many idle streams, once the service has them all."""
        metadata = (("authorization", f"Bearer {self._token}"),)
        calls: list[Any] = []
        while len(calls) < count:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels.append(grpc.aio.insecure_channel(self.mesh.address, options=options))
            stub = ChatServiceStub(self._channels[-1])
            some = min(STREAMS_OF_A_CHANNEL, count - len(calls))
            calls += [stub.Converse(metadata=metadata) for _ in range(some)]
            # gRPC's servers refuse some of a crowd: those that wait to be taken in, from 1,000 on.
            await self._until(len(calls))
        return calls

    async def _until(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while (active := await self.active()) != count:
            assert time.monotonic() < deadline, f"{active} of {count} streams are open"
            await asyncio.sleep(0.2)

    async def close(self, calls: list[Any]) -> int:
        """Half-closes every stream; how many did not end as they should."""

        async def ended(call: Any) -> bool:
            try:
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
                return bool(await call.code() == grpc.StatusCode.OK)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                return False

        fine = await asyncio.gather(*map(ended, calls))
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._channels.clear()
        await self._until(0)
        return len(calls) - sum(fine)


async def first_tokens(calls: list[Any]) -> list[float]:
    """Milliseconds to the first event of a turn on each stream, one after the other."""
    took = []
    for call in calls:
        unique = uuid.uuid4().hex
        question = [Message(role="user", content="What is a weft?")]
        request = StreamChatRequest(conversation_id=unique, request_id=unique, messages=question)
        began = time.perf_counter()
        await call.write(ConverseRequest(turn=request))
        message = await call.read()
        took.append((time.perf_counter() - began) * 1e3)
        while message.event.type != "done":
            assert message.event.type in ("delta", "refs"), message
            message = await call.read()
    return took


async def measure(server: Server, streams: int) -> Figures:
    calls = await server.open(FIRST)
    await first_tokens(calls[:TURNS])
    empty_ms = await first_tokens(calls[:TURNS])
    lost = await server.close(calls)
    await asyncio.sleep(1)
    before = server.resident()
    calls = await server.open(streams)
    await asyncio.sleep(HELD_S)
    after = server.resident()
    beside_ms = await first_tokens(calls[:: max(1, streams // TURNS)][:TURNS])
    lost += await server.close(calls)
    return Figures(
        {name: (after[name] - before[name]) / streams for name in after}, empty_ms, beside_ms, lost
    )


@contextlib.contextmanager
def served(kind: str) -> Iterator[Server]:
    metrics = f"127.0.0.1:{free_port()}"
    environment = {"WEFT_ENVOY_METRICS_ADDRESS": metrics}
    with servers_behind_envoy(PROGRAMS[kind], environment=environment) as mesh:
        server = Server(mesh, metrics)
        asyncio.run(_ready(server))
        yield server


async def _ready(server: Server) -> None:
    for _ in range(300):
        with contextlib.suppress(grpc.aio.AioRpcError, httpx.HTTPError, TimeoutError, AssertionError):
            async with asyncio.timeout(5):
                calls = await server.open(1)
                await first_tokens(calls)
                if not await server.close(calls):
                    return
        await asyncio.sleep(0.2)
    raise RuntimeError(f"not ready\n{server.mesh.logs()}")


def compare(streams: int) -> dict[str, Figures]:
    """Bare first, then Weft."""
    figures = {}
    for kind in PROGRAMS:
        with served(kind) as server:
            figures[kind] = uvloop.run(measure(server, streams))
    return figures


def main() -> None:
    streams = int(sys.argv[1]) if len(sys.argv) > 1 else STREAMS
    figures = compare(streams)
    ours, bare = figures["Weft"], figures["bare"]
    rows: list[list[object]] = []
    for name in ours.kib:
        mine, other = ours.kib[name], bare.kib[name]
        rows.append([f"{name}, KiB a stream", f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}"])
    mine, other = sum(ours.kib.values()), sum(bare.kib.values())
    rows.append(["all, KiB a stream", f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}"])
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        beside, empty = percentile(ours.beside_ms, share), percentile(ours.empty_ms, share)
        rows.append([f"first token {name}, ms: beside them, alone", f"{beside:.1f}", f"{empty:.1f}",
                     f"{beside / empty:.2f}"])  # fmt: skip
    rows.append(["streams lost", ours.lost, bare.lost, ""])
    table([f"{streams:,} idle streams", "Weft", "bare, or alone", "ratio"], rows)
    print(f"The marks: memory at most {MARKS['memory']}×, first token {MARKS['first token']}×, none lost.")


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    main()

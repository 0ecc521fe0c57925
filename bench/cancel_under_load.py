"""How long after a client's cancel the model's generator is closed, from each transport, under 64 streams.

    .venv/bin/python -m bench.cancel_under_load

The load comes from a process of its own (`weft load`): 32 turns a second of 40 tokens, one every 50 ms (25 to
75), so that 64 streams are open, out of step as users' are. All services share one process, behind Envoy.
Beside them this process begins endless turns, cancels each after its second event, and reads what is kept:
the last event must be TURN_CANCELLED, and nothing may follow. All processes read the same monotonic clock;
the generator says in its `finally` when that was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psutil
import uvloop

from bench.setting import percentile, servers_behind_envoy, table
from bench.stream_cost import processor_s
from tests.integration.test_mesh_cancel import CASES, Try
from tests.servers.mesh import Mesh
from tests.servers.transports import resumed, take, transports, turn
from weft import Weft
from weft.v1.common_pb2 import Usage
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weft.v1.retrieval_pb2 import SearchResponse

STREAMS = 64
TOKENS = 40
PACE_S = 0.05
CANCELS = 200
# Before the load, for comparison.
IDLE_CANCELS = 50
AT_ONCE = 4
MARK_MS = 20.0
_TOLD_AT = "BENCH_TOLD_AT"

Closed = dict[str, asyncio.Future[float]]


class Paced:
    """A `LanguageModel` that writes at a known pace, "endless" for ever, and tells when it is closed."""

    provider = "openai"
    can_continue = False

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self._tell = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tell.connect(("127.0.0.1", int(os.environ[_TOLD_AT])))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        made = 0
        try:
            while self.model_id == "endless" or made < TOKENS:
                yield GenerateEvent(type="delta", content=f"token {made} ")
                made += 1
                await asyncio.sleep(PACE_S * random.uniform(0.5, 1.5))
            yield GenerateEvent(type="done", usage=Usage(), finish_reason="stop")
        finally:
            at_s = time.monotonic()
            self._tell.send(json.dumps([request.messages[-1].content, at_s]).encode())

    async def close(self) -> None: ...


def serve() -> None:
    """The real services, but for the models and the search."""
    from weftd import compose_models
    from weftd.chat import mesh
    from weftd.models.port import ModelRegistry
    from weftd.programs import serve as run_serve
    from weftd.settings import SERVICES, Settings

    @asynccontextmanager
    async def paced(*_: object) -> AsyncIterator[ModelRegistry]:
        yield ModelRegistry([Paced("steady"), Paced("endless")])

    class NoRetrieval:
        def __init__(self, *_: object) -> None: ...

        async def search(self, _request: object) -> SearchResponse:
            return SearchResponse()

    compose_models.language_models = paced  # type: ignore[assignment]  # the bench's own
    mesh.MeshRetrieval = NoRetrieval  # type: ignore[assignment, misc]
    uvloop.run(run_serve(Settings(), SERVICES))


class Told(asyncio.DatagramProtocol):
    """When each generator was closed, by its question."""

    def __init__(self) -> None:
        self.closed: Closed = {}

    def datagram_received(self, data: bytes, _address: object) -> None:
        question, at_s = json.loads(data)
        if question in self.closed:
            self.closed[question].set_result(at_s)


@contextlib.contextmanager
def served(told_at: int) -> Iterator[Mesh]:
    program = ("bench.cancel_under_load", "serve")
    with servers_behind_envoy(program, environment={_TOLD_AT: str(told_at)}) as mesh:
        mesh.wait_ready()
        yield mesh


@contextlib.asynccontextmanager
async def load(mesh: Mesh) -> AsyncIterator[None]:
    """The load of 64 streams while inside; fails where any of its turns did."""
    options = [
        "--address",
        mesh.address,
        "--rate",
        str(STREAMS / TOKENS / PACE_S),
        "--duration",
        "600",
        "--json",
    ]
    loader = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "weftd", "load", *options],
        env=mesh.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        await asyncio.sleep(5)  # its own start, and its warm-up
        services = psutil.Process(mesh.processes["server-1"].pid)
        cpu_s, began_s = processor_s(services), time.monotonic()
        yield
        busy = (processor_s(services) - cpu_s) / (time.monotonic() - began_s)
        loader.send_signal(signal.SIGINT)
        output, _ = await loader.communicate()
        figures = json.loads(output)
        print(
            f"The load: {figures['qps']:.0f} turns a second, first token p50 "
            f"{figures['first_token_ms']['p50']:.0f} ms, p99 {figures['first_token_ms']['p99']:.0f} ms, "
            f"errors {figures['errors']}; the services use {busy:.0%} of a core\n"
        )
    finally:
        if loader.returncode is None:
            loader.kill()


async def cancels(mesh: Mesh, told: Told, cases: list[str], count: int) -> dict[str, list[float]]:
    """Milliseconds from each act to the end of the generator."""
    token = mesh.token("bench")
    took: dict[str, list[float]] = {name: [] for name in cases}
    waiting = [name for _ in range(count) for name in cases]

    async def work() -> None:
        async with transports(mesh.address, token) as wire, Weft(mesh.address, token=token) as weft:
            while waiting:
                name = waiting.pop()
                this = Try(wire, weft, turn(f"Never end {uuid.uuid4().hex}", model_id="endless"))
                question = this.asked.messages[0].content
                closed = told.closed[question] = asyncio.get_running_loop().create_future()
                acted_s = await CASES[name](this)
                took[name].append((await asyncio.wait_for(closed, 10) - acted_s) * 1e3)
                events = await take(await wire.grpc(resumed(this.asked, 0)))
                assert (events[-1].type, events[-1].reason) == ("error", "TURN_CANCELLED"), events[-1]
                again = await take(await wire.grpc(resumed(this.asked, 0)))
                assert again == events

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return took


async def main() -> None:
    cases = [name for name in CASES if "deadline" not in name and "SDK" not in name]
    loop = asyncio.get_running_loop()
    transport, told = await loop.create_datagram_endpoint(Told, local_addr=("127.0.0.1", 0))
    rows = []
    with served(transport.get_extra_info("sockname")[1]) as mesh:
        idle = await cancels(mesh, told, cases, IDLE_CANCELS)
        async with load(mesh):
            loaded = await cancels(mesh, told, cases, CANCELS)
    for name in cases:
        figures = [f"{percentile(each[name], share):.1f}" for each in (idle, loaded) for share in (0.5, 0.99)]
        rows.append([name, len(loaded[name]), *figures])
    together = [value for values in loaded.values() for value in values]
    rows.append(["all", len(together), "", "", *(f"{percentile(together, s):.1f}" for s in (0.5, 0.99))])
    header = ["cancel", "times", "idle p50, ms", "idle p99", f"{STREAMS} streams p50, ms", "p99"]
    table(header, rows)
    print(f"The mark: p99 under {MARK_MS:.0f} ms.")
    transport.close()


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        uvloop.run(main())

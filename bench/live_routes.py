"""How fast a new RPC is served, and how many streams its coming cuts: `python -m bench.live_routes`.

100 turns are open, each in its midst: 20 each over gRPC, Converse, gRPC-Web, SSE and WebSocket, through Envoy
to a real chat service. Then an RPC with a REST path is added to the contract and its route with it: by
`EnvoyProcess.update`, and by exchanging the descriptor set that a running Envoy follows. Clocked is the time
until the RPC answers over gRPC and over REST. Then all turns go on to their end.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import structlog
import uvloop

from bench.setting import spread, table
from tests.servers.live_contract import LiveMesh, live_mesh, with_call

_ROUNDS = 5
_STREAMS = 100


async def _by_update(mesh: LiveMesh, name: str, descriptors: bytes) -> float:
    started = time.monotonic()
    await mesh.envoy.update(replace(mesh.config, descriptors=descriptors))
    return await mesh.answers_within(name, started)


async def _by_file(mesh: LiveMesh, name: str, descriptors: bytes) -> float:
    fresh = mesh.contract.with_suffix(".new")
    await asyncio.to_thread(fresh.write_bytes, descriptors)
    started = time.monotonic()
    await asyncio.to_thread(fresh.replace, mesh.contract)
    return await mesh.answers_within(name, started)


async def main() -> None:
    ways = {"EnvoyProcess.update": _by_update, "descriptor set exchanged": _by_file}
    names = [f"Suggest{number}" for number in range(len(ways) * _ROUNDS)]
    took: dict[str, list[float]] = {way: [] for way in ways}
    cut: dict[str, int] = dict.fromkeys(ways, 0)
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        async with live_mesh(Path(directory), names) as mesh:
            for number, name in enumerate(names):
                way = list(ways)[number % len(ways)]
                streams = await mesh.open(_STREAMS)
                descriptors = with_call(mesh.config.descriptors, name)
                took[way].append(await ways[way](mesh, name, descriptors))
                cut[way] += await mesh.finish(streams)
    table(
        ["new contract by", "until the RPC answers, s", f"of {_STREAMS * _ROUNDS} streams cut"],
        [(way, spread(took[way]), cut[way]) for way in ways],
    )


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    uvloop.run(main())

"""PostgreSQL and Milvus killed with -9 under load and started again: how soon Weft answers, and what it said.

    .venv/bin/python -m bench.store_outage [KILLS]

A mesh (`weft up`) on both stores, asked by four chats (resumed until their end), two searches, two readers of
a conversation, uploads, and index jobs one after the other. Each store is killed KILLS times (6), at random
moments, and stays away for 1 to 8 s. "Recovered" counts from when the store answers its own client (psycopg:
a query; pymilvus: a count in the collection, which Milvus loads again for longer than it starts) to the first
success of a path after its last failure. At the end all that was acknowledged is read again, and the
connections to PostgreSQL are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import psycopg
from pymilvus import MilvusClient

from bench.setting import percentile, processes, table
from bench.store_load import PATHS, Load, store_load
from tests.servers.mesh import free_port
from tests.servers.milvus import Milvus, running_milvus
from tests.servers.model_mesh import ModelMesh, running_model_mesh
from tests.servers.postgres import Postgres, running_postgres

__all__ = ["Outages", "Stores", "mesh_on_stores", "outages"]

_NOTICED_WITHIN_S = 10.0
_RECOVERED_WITHIN_S = 60.0


@dataclass
class Stores:
    """The stores of a mesh; `metrics` is where its readiness is."""

    mesh: ModelMesh
    postgres: Postgres
    records_url: str
    metrics: str
    milvus: Milvus | None = None

    def query(self) -> None:
        """What PostgreSQL's own client does."""
        with psycopg.connect(self.records_url, connect_timeout=2) as connection:
            connection.execute("SELECT count(*) FROM turns")

    def count(self) -> None:
        """What Milvus's own client does."""
        assert self.milvus is not None
        client = MilvusClient(f"http://{self.milvus.address}", timeout=2)
        try:
            for name in client.list_collections():
                client.query(name, filter="", output_fields=["count(*)"], timeout=2)
        finally:
            client.close()

    def connections(self) -> tuple[int, int]:
        """Of Weft with PostgreSQL: how many the server has, and how many only one side holds."""
        until = time.monotonic() + 5
        while True:
            used, stray = self._connections()
            if not stray or time.monotonic() > until:
                return used, stray

    def _connections(self) -> tuple[int, int]:
        with psycopg.connect(self.records_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            ).fetchone()
        assert row is not None
        port = int(self.records_url.rsplit(":", 1)[1].split("/")[0])
        held = []
        for process in processes(self.mesh.mesh).values():
            with contextlib.suppress(psutil.NoSuchProcess):  # a parser that ended
                held += [
                    each.status
                    for each in process.net_connections("tcp")
                    if each.raddr and each.raddr.port == port
                ]
        open_here = held.count(psutil.CONN_ESTABLISHED)
        return int(row[0]), len(held) - open_here + abs(int(row[0]) - open_here)

    async def ready_says(self, name: str, *, missing: bool) -> float:
        """Seconds until readiness names a store as missing, or no longer. TimeoutError."""
        began = time.monotonic()
        async with httpx.AsyncClient() as client, asyncio.timeout(_NOTICED_WITHIN_S):
            while True:
                answer = await client.get(f"http://{self.metrics}/ready")
                assert answer.status_code == 200, answer.text
                if (f"{name} at " in answer.text) == missing:
                    return time.monotonic() - began
                await asyncio.sleep(0.1)


@dataclass
class Outages:
    """`recovered` has the seconds after each kill, by path; `connections` (used, stray) before and after."""

    kills: int = 0
    recovered: dict[str, list[float]] = field(default_factory=lambda: {path: [] for path in PATHS})
    noticed: list[float] = field(default_factory=list)
    connections: list[tuple[int, int]] = field(default_factory=list)
    load: Load = field(default_factory=Load)

    def late(self, limit_s: float) -> list[str]:
        """The paths that took longer, or did not come back at all."""
        return [
            f"{path} after {seconds:.1f} s"
            for path, each in self.recovered.items()
            for seconds in each
            if math.isnan(seconds) or seconds > limit_s
        ]


@contextmanager
def mesh_on_stores(*, with_milvus: bool) -> Iterator[Stores]:
    """`weft up` on a PostgreSQL, and a Milvus if wanted, of its own."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-outage-")))
        postgres = stack.enter_context(running_postgres())
        url, metrics = postgres.database(), f"127.0.0.1:{free_port()}"
        environment = {"WEFT_RECORDS_URL": url, "WEFT_METRICS_ADDRESS": metrics}
        environment["WEFT_REQUESTS_PER_MINUTE"] = "1000000"
        milvus = None
        if with_milvus:
            (directory / "milvus").mkdir()
            milvus = stack.enter_context(running_milvus(directory / "milvus"))
            environment["WEFT_PASSAGES_URL"] = f"milvus://{milvus.address}"
        mesh = stack.enter_context(running_model_mesh(directory, "one", environment))
        yield Stores(mesh, postgres, url.replace("+psycopg", ""), metrics, milvus)


async def outages(
    stores: Stores, name: str, kills: int, away_s: tuple[float, float], *, frozen: bool = False
) -> Outages:
    """Kills "records" (PostgreSQL) or "passages" (Milvus) so often, and starts it after `away_s`, from to.

    `frozen`: Milvus is only stopped, so that its connections stay open and nobody answers on them.
    """
    dice, result = random.Random(1), Outages()
    store = stores.postgres if name == "records" else stores.milvus
    ask = stores.query if name == "records" else stores.count
    assert store is not None
    take_away, bring_back = store.kill, store.start
    if frozen:
        assert stores.milvus is not None
        take_away, bring_back = stores.milvus.freeze, stores.milvus.thaw
    async with store_load(stores.mesh) as load:
        result.load = load
        await _settled(load)
        result.connections.append(await asyncio.to_thread(stores.connections))
        for _ in range(kills):
            await asyncio.sleep(dice.uniform(0, 2))
            await asyncio.to_thread(take_away)
            result.kills += 1
            starts_at = time.monotonic() + dice.uniform(*away_s)
            result.noticed.append(await stores.ready_says(name, missing=True))
            await asyncio.sleep(starts_at - time.monotonic())
            await asyncio.to_thread(bring_back)
            answered = await asyncio.to_thread(_answered, ask)
            await stores.ready_says(name, missing=False)
            await _settled(load, answered)
            for path in PATHS:
                result.recovered[path].append(load.recovered_after_s(path, answered))
        result.connections.append(await asyncio.to_thread(stores.connections))
    return result


def _answered(ask: Callable[[], None]) -> float:
    """When the store answered its own client."""
    until = time.monotonic() + 180
    while True:
        try:
            ask()
            return time.monotonic()
        except Exception:
            if time.monotonic() > until:
                raise
        time.sleep(0.05)


async def _settled(load: Load, answered: float | None = None) -> None:
    """Until each path has succeeded since, some time after its last failure; at most a minute."""
    since = time.monotonic() if answered is None else answered
    until = time.monotonic() + _RECOVERED_WITHIN_S
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        failed = max((call.ended for call in load.calls if call.failure), default=0.0)
        succeeded = {call.path for call in load.calls if call.began > since and not call.failure}
        if succeeded == set(PATHS) and failed < time.monotonic() - 2:
            return


def _row(name: str, result: Outages) -> list[object]:
    load, failures = result.load, Counter[str]()
    for said, count in result.load.failures().items():
        failures[said.split(" ", 1)[1]] += count
    slowest = {path: max(each) for path, each in result.recovered.items()}
    (before, _), (after, stray) = result.connections
    return [
        name,
        result.kills,
        *(f"{slowest[path]:.1f}" for path in PATHS),
        f"{percentile(result.noticed, 1):.1f}",
        f"{len(load.turns)} / {load.resumed} / {load.interrupted}",
        ", ".join(f"{count} {said}" for said, count in failures.most_common()) or "none",
        ", ".join(f"{count} {said}" for said, count in load.degraded.most_common()) or "none",
        f"{load.longest_s():.1f}",
        f"{before} → {after}, {stray} stray",
        len(load.wrong),
    ]


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    with mesh_on_stores(with_milvus=True) as stores:
        results = {
            "PostgreSQL": asyncio.run(outages(stores, "records", kills, (1, 8))),
            "Milvus": asyncio.run(outages(stores, "passages", kills, (1, 8))),
        }
    head = [
        "killed",
        "kills",
        *(f"{path}, s" for path in PATHS),
        "readiness, s",
        "turns / resumed / interrupted",
    ]
    head += ["failures", "degraded", "longest call, s", "connections", "wrong"]
    table(head, [_row(name, result) for name, result in results.items()])
    for result in results.values():
        for line in result.load.wrong[:20]:
            print(line)


if __name__ == "__main__":
    main()

"""A store of a whole mesh killed with -9 under load. `bench.store_outage` does it more often, and longer."""

from __future__ import annotations

import asyncio

import pytest

from bench.store_outage import Outages, mesh_on_stores, outages

RECOVERED_WITHIN_S = 10.0
CLEAR = {"BACKEND_UNAVAILABLE+retry"}


def check(result: Outages) -> None:
    load = result.load
    assert load.wrong == []
    assert result.late(RECOVERED_WITHIN_S) == []
    assert {said.split(" ", 1)[1] for said in load.failures()} <= CLEAR, load.failures()
    (before, _), (after, broken) = result.connections
    assert after <= before and broken == 0, result.connections


@pytest.mark.timeout(180)
def test_postgresql_is_killed() -> None:
    with mesh_on_stores(with_milvus=False) as stores:
        result = asyncio.run(outages(stores, "records", 2, (1, 5)))
    check(result)
    assert result.load.failures(), "nobody noticed"


@pytest.mark.timeout(300)
def test_milvus_is_killed() -> None:
    with mesh_on_stores(with_milvus=True) as stores:
        result = asyncio.run(outages(stores, "passages", 1, (1, 5)))
    check(result)
    assert {said.split(": ")[1] for said in result.load.degraded} & {"retrieval", "dense"}
    assert not [said for said in result.load.failures() if said.startswith(("chat", "read"))]

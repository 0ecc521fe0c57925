"""A store of a whole mesh killed with -9 under load. `bench.store_outage` does it more often, and longer."""

from __future__ import annotations

import asyncio
import os

import pytest

from bench.store_outage import Outages, mesh_on_stores, outages

RECOVERED_WITHIN_S = 10.0
CLEAR = {"BACKEND_UNAVAILABLE+retry"}
# The pools open connections as they need them; those that nobody uses are counted apart.
POOLS_GROW = 6


def check(result: Outages) -> None:
    load = result.load
    assert load.wrong == []
    assert result.late(RECOVERED_WITHIN_S) == []
    assert {said.split(" ", 1)[1] for said in load.failures()} <= CLEAR, load.failures()
    (before, _), (after, stray) = result.connections
    assert after <= before + POOLS_GROW and stray == 0, result.connections


@pytest.mark.timeout(180)
def test_postgresql_is_killed() -> None:
    with mesh_on_stores(with_milvus=False) as stores:
        result = asyncio.run(outages(stores, "records", 2, (1, 5)))
    check(result)
    assert result.load.failures(), "nobody noticed"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_milvus_does_not_answer(how: str) -> None:
    if how == "killed" and "WEFT_TEST_KILLS" not in os.environ:
        pytest.skip("Milvus 2.3.5 takes minutes to load its collections again: WEFT_TEST_KILLS is not set")
    with mesh_on_stores(with_milvus=True) as stores:
        result = asyncio.run(outages(stores, "passages", 1, (3, 5), frozen=how == "frozen"))
    check(result)
    assert {said.split(": ")[1] for said in result.load.degraded} == {"dense"}
    assert not [said for said in result.load.failures() if said.startswith(("chat", "read", "search"))]

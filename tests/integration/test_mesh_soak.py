"""Five minutes under half of what the mesh can do: nothing grows. The bench does it for an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak import environment, is_flat, soak, troughs
from tests.servers.mesh import running_mesh

MINUTES = 5.0


@pytest.mark.timeout(600)
async def test_nothing_grows(tmp_path: Path) -> None:
    unlimited = {"WEFT_REQUESTS_PER_MINUTE": "1000000"}
    with running_mesh(tmp_path, "one", {**unlimited, **environment()}) as mesh:
        soaked = await soak(mesh, MINUTES)
    grown = {name: troughs(each) for name, each in soaked.samples.items() if not is_flat(name[1], each)}
    assert grown == {}
    assert soaked.errors == {}
    assert soaked.turns > 100

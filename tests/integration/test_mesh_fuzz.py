"""Two thousand hostile inputs, the same each time; `bench.fuzz` sends many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fuzz import fuzz
from bench.fuzz_inputs import SURFACES
from tests.servers.mesh import running_mesh

INPUTS = 2_000
MOST_GROWN_MB = 60


@pytest.mark.timeout(300)
def test_no_input_makes_a_fault_or_a_memory_that_grows(tmp_path: Path) -> None:
    with running_mesh(tmp_path, "one", {"WEFT_REQUESTS_PER_MINUTE": "1000000"}) as mesh:
        fuzzed = fuzz(mesh, INPUTS, seed=20261122)
    assert not fuzzed.failures, "\n".join(fuzzed.failures[:5])
    assert {each.surface for each in fuzzed.found} == {*SURFACES, "documents, indexed"}
    assert sum(each.inputs for each in fuzzed.found) > 0.9 * INPUTS
    # Not only refusals: some of each kind go all the way.
    good = {
        "REST bodies": "200",
        "forms": "200",
        "gRPC": "OK",
        "WebSocket": "close 1000",
        "documents, indexed": "indexed",
    }
    for each in fuzzed.found:
        assert each.codes[good.get(each.surface, "200")] > 0, each
    for name, (_, half, end) in fuzzed.rss_mb.items():
        if name != "jobs":  # it parses and embeds what came, as anyone's
            assert end - half < MOST_GROWN_MB, name

"""The job process of a whole mesh killed with -9. The bench does it twenty times."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.kill_index import disturb
from tests.servers.mesh import running_mesh

KILLS = 3


@pytest.mark.timeout(300)
def test_index_is_the_same_after_kills(tmp_path: Path) -> None:
    with running_mesh(tmp_path, "one", {"WEFT_LOG_LEVEL": "debug"}) as mesh:
        result = disturb(mesh, KILLS, words=8_000)
    assert result.kills == KILLS
    assert result.finished > KILLS, "the kills came before anything was done"
    assert result.again == [], "finished steps ran again"
    assert result.differences == []

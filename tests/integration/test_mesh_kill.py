"""Processes of a whole mesh killed with -9. The benches do it 20 and 50 times."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.kill_index import disturb
from bench.kill_mesh import VICTIMS, kill_each, unlimited_mesh
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


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    """Uploads, index jobs and chats go on, and come to their end."""
    with unlimited_mesh(tmp_path) as model_mesh:
        account, killed = asyncio.run(kill_each(model_mesh, len(VICTIMS)))
    assert set(killed) == set(VICTIMS)
    assert account.wrong == []
    assert account.resumed
    assert account.indexed

"""A large upload is held in no process."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.upload_memory import measure
from tests.servers.mesh import running_mesh

MOST_MB = 20


@pytest.mark.timeout(300)
def test_uploads_of_50_mb_are_not_held_in_memory(tmp_path: Path) -> None:
    with running_mesh(tmp_path) as mesh:
        grown = measure(mesh, tmp_path)
    assert set(grown) == {"form 1", "stream 1"}
    for upload, processes in grown.items():
        assert {"envoy", "services", "jobs"} <= processes.keys()
        assert max(processes.values()) <= MOST_MB, (upload, processes)

"""What several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.mesh import Mesh, running_mesh


@pytest.fixture(scope="session", params=["one", "split"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A whole mesh with its embedded defaults, in both topologies."""
    with running_mesh(tmp_path_factory.mktemp(f"mesh-{request.param}"), request.param) as running:
        yield running

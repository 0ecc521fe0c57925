"""What several kinds of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.mesh import Mesh, running_mesh
from tests.servers.triton import need_triton


@pytest.fixture(scope="session", params=["one", "split", "triton"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A whole mesh with its embedded defaults, in one program and in many, and with its models on Triton."""
    if request.param == "triton":
        need_triton()
    with running_mesh(tmp_path_factory.mktemp(f"mesh-{request.param}"), request.param) as running:
        yield running

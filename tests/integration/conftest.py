"""The mesh that several of these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.model_mesh import ModelMesh, running_model_mesh


@pytest.fixture(scope="session", params=["one", "split", "triton"])
def model_mesh(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelMesh]:
    with running_model_mesh(tmp_path_factory.mktemp(f"models-{request.param}"), request.param) as running:
        yield running

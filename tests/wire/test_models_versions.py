"""Versions of models on a real Triton: published under calls, gone back to, watched, refused to users."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.servers.model_versions import (
    NUMBER_CONFIG,
    Versions,
    archive,
    letters,
    messages,
    number,
    publishing_on,
    serving,
    write_models,
)
from tests.servers.rpc_mesh import reason
from tests.servers.triton import RunningTriton, running_triton
from weft.v1 import models_pb2 as pb


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    directory = tmp_path_factory.mktemp("triton")
    with running_triton(write_models(directory / "source"), directory) as running:
        yield running


@pytest.fixture
async def versions(server: RunningTriton, tmp_path: Path) -> AsyncIterator[Versions]:
    async with serving(server, tmp_path) as served:
        yield served


async def test_a_published_version_answers_new_calls(versions: Versions) -> None:
    before = (await versions.called())[1]
    published = await versions.publish("number", archive({"model.py": number(70), "data/x.bin": b"x" * 200_000}))
    assert (published.model, published.version) == ("number", before + 1)
    assert published.bytes == 200_000 + len(number(70))
    assert await versions.called() == (70, published.version)
    assert (await versions.listed())["number"][0] == published.version
    nothing_left(versions)


def nothing_left(versions: Versions) -> None:
    assert not [each.name for each in versions.server.repository.iterdir() if "check" in each.name]
    assert not [each for each in versions.work.iterdir() if each.is_dir()]
    assert not [each for each in versions.server.repository.rglob("weft_check.py")]

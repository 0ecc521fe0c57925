"""Versions of models in an S3-compatible store, from which a real Triton reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from tests.servers.model_versions import (
    NUMBER_CONFIG,
    Versions,
    archive,
    number,
    serving,
    write_model,
)
from tests.servers.object_store import ObjectStore, object_store
from tests.servers.triton import RunningTriton, running_triton
from weftd.models.versions.store import VersionStore
from weftd.models.versions.trial import TrialLimits


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture(scope="module")
def server(objects: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    directory = tmp_path_factory.mktemp("triton")
    write_model(directory / "source", "number", NUMBER_CONFIG, number(1))
    store = VersionStore(objects.url("models"))
    store.put(directory / "source" / "number" / "1", "number", 1)
    store.write("number", NUMBER_CONFIG.encode(), "config.pbtxt")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in objects.environment.items():
            patch.setenv(name, value)
        with running_triton(directory / "source", directory, url=objects.triton_url("models")) as running:
            yield running


@pytest.fixture
async def versions(server: RunningTriton, objects: ObjectStore, tmp_path: Path) -> AsyncIterator[Versions]:
    async with serving(
        server, tmp_path, TrialLimits(load_s=30, call_s=8), repository=objects.url("models")
    ) as served:
        yield served


async def test_a_version_is_published_and_gone_back_from(versions: Versions, objects: ObjectStore) -> None:
    code, _ = await versions.called()
    published = await versions.publish("number", archive({"model.py": number(2), "data/x.bin": b"x" * 9999}))
    assert await versions.called() == (2, published.version)
    again = await versions.rollback("number")
    assert await versions.called() == (code, again.version)
    served, kept = (await versions.listed())["number"]
    assert (served, kept[:2]) == (again.version, [again.version, published.version])
    assert VersionStore(objects.url("models")).models() == ["number"], "of the check nothing is left"


async def test_a_broken_version_is_refused(versions: Versions, objects: ObjectStore) -> None:
    before = await versions.called()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await versions.publish("number", archive({"model.py": b"no python"}))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await versions.called() == before
    assert VersionStore(objects.url("models")).models() == ["number"]

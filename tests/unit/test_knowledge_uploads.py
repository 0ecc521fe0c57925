"""Uploads whose disk fails between the record and the file's place, or whose records fail in the commit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from weft.v1 import knowledge_pb2
from weftd.errors import Unavailable
from weftd.knowledge import uploads as module
from weftd.knowledge.intake import UploadLimits
from weftd.knowledge.uploads import Uploads
from weftd.stores.blobs import directory
from weftd.stores.blobs.directory import DirectoryBlobs
from weftd.stores.records.engine import Operation, Records
from weftd.stores.records.migrate import migrate

T = TypeVar("T")


async def messages() -> AsyncIterator[knowledge_pb2.UploadRequest]:
    yield knowledge_pb2.UploadRequest(header=knowledge_pb2.UploadHeader(dataset_id="ds", name="a.txt"))
    yield knowledge_pb2.UploadRequest(data=b"alpha")


async def test_a_recorded_file_keeps_its_bytes_where_it_could_not_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    migrate(url := f"sqlite:///{tmp_path / 'records.db'}")
    records, blobs = Records(url), DirectoryBlobs(tmp_path / "blobs")
    try:
        uploads = Uploads(records, blobs, UploadLimits())
        with monkeypatch.context() as disk, pytest.raises(Unavailable):
            disk.setattr(directory, "_move", full)
            await uploads.stream("acme", messages())
        again = await uploads.stream("acme", messages())
        assert again.documents[0].status == "duplicate"
        left = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
        assert [path.read_bytes() for path in left] == [b"alpha"]
    finally:
        await records.close()


class Unsure(Records):
    """Records that lose the connection `losses` times, after the commit or before it."""

    def __init__(self, url: str, *, committed: bool, losses: int) -> None:
        super().__init__(url)
        self.committed = committed
        self.losses = losses

    async def write(self, operation: Operation[T], *, durable: bool = False) -> T:
        if not self.losses:
            return await super().write(operation, durable=durable)
        self.losses -= 1
        if self.committed:
            await super().write(operation, durable=durable)
        raise self._unavailable()


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_unknown_outcome_is_asked_again(tmp_path: Path, committed: bool) -> None:
    migrate(url := f"sqlite:///{tmp_path / 'records.db'}")
    records, blobs = Unsure(url, committed=committed, losses=1), DirectoryBlobs(tmp_path / "blobs")
    try:
        answer = await Uploads(records, blobs, UploadLimits()).stream("acme", messages())
        assert answer.documents[0].status == "stored"
        (left,) = [path for path in (tmp_path / "blobs" / "kept").rglob("*") if path.is_file()]
        assert left.read_bytes() == b"alpha"
    finally:
        await records.close()


@pytest.mark.parametrize("committed", [True, False])
async def test_what_stays_unknown_is_settled_before_the_next_upload(
    tmp_path: Path, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STORE_PATIENCE_S", 0)
    migrate(url := f"sqlite:///{tmp_path / 'records.db'}")
    records, blobs = Unsure(url, committed=committed, losses=1), DirectoryBlobs(tmp_path / "blobs")
    try:
        uploads = Uploads(records, blobs, UploadLimits())
        with pytest.raises(Unavailable) as raised:
            await uploads.stream("acme", messages())
        assert raised.value.metadata == {"backend": "records"}
        answer = await uploads.stream("acme", messages())
        assert answer.documents[0].status == ("duplicate" if committed else "stored")
        left = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
        assert [path.parent.parent.name for path in left] == ["kept"]
        assert left[0].read_bytes() == b"alpha"
    finally:
        await records.close()

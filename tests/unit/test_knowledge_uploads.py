"""Uploads whose disk fails between the record and the file's place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from weft.v1 import knowledge_pb2
from weftd.errors import Unavailable
from weftd.knowledge.intake import UploadLimits
from weftd.knowledge.uploads import Uploads
from weftd.stores.blobs import directory
from weftd.stores.blobs.directory import DirectoryBlobs
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


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

"""Uploads that take a place and do not use it."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.api import httpbody_pb2

from weft.v1 import knowledge_pb2
from weftd.errors import InvalidArgument, ResourceExhausted, reason_name
from weftd.knowledge import uploads as module
from weftd.knowledge.intake import UploadLimits
from weftd.knowledge.uploads import Uploads
from weftd.stores.blobs.directory import DirectoryBlobs
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


@pytest.fixture
async def uploads(tmp_path: Path) -> AsyncIterator[Uploads]:
    migrate(url := f"sqlite:///{tmp_path / 'records.db'}")
    records = Records(url)
    yield Uploads(records, DirectoryBlobs(tmp_path / "blobs"), UploadLimits(uploads=3, tenant_uploads=2))
    await records.close()


async def messages(until: asyncio.Event) -> AsyncIterator[knowledge_pb2.UploadRequest]:
    yield knowledge_pb2.UploadRequest(header=knowledge_pb2.UploadHeader(dataset_id="ds", name="a.txt"))
    await until.wait()
    yield knowledge_pb2.UploadRequest(data=b"alpha")


async def test_one_tenant_cannot_take_all_places(uploads: Uploads) -> None:
    go_on = asyncio.Event()
    running = [asyncio.create_task(uploads.stream("acme", messages(go_on))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as raised:
        await uploads.stream("acme", messages(go_on))
    assert (reason_name(raised.value.reason), raised.value.retry_after_s) == ("OVERLOADED", 5)
    running.append(asyncio.create_task(uploads.stream("other", messages(go_on))))
    await asyncio.sleep(0)
    go_on.set()
    assert [len((await each).documents) for each in running] == [1, 1, 1]
    assert len((await uploads.stream("acme", messages(go_on))).documents) == 1


async def test_who_sends_nothing_gives_the_place_back(
    uploads: Uploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SILENCE_LIMIT_S", 0.1)
    with pytest.raises(InvalidArgument) as raised:
        await uploads.stream("acme", messages(asyncio.Event()))
    assert reason_name(raised.value.reason) == "UPLOAD_MALFORMED"
    assert "nothing came" in raised.value.message
    assert not uploads._running
    assert not uploads._running_of


async def test_pieces_without_a_byte_cost_nothing(uploads: Uploads) -> None:
    async def empty() -> AsyncIterator[Any]:
        piece = httpbody_pb2.HttpBody(content_type="multipart/form-data; boundary=x")
        for number in range(200_000):
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield piece

    tracemalloc.start()
    try:
        with pytest.raises(InvalidArgument):
            await uploads.form("acme", empty())
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()

"""`weft models watch` goes on where the edge ends its stream, and shows what has changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from weft.v1.models_pb2 import WatchModelsEvent
from weftd import model_calls


class EndingStreams:
    """Each stream tells of one version and is reset; the fourth does not begin."""

    def __init__(self) -> None:
        self._versions = iter([1, 1, 2])

    async def metadata(self, _request_id: str) -> None:
        return None

    async def WatchModels(self, _request: object, metadata: None) -> AsyncGenerator[WatchModelsEvent, None]:
        for version in self._versions:
            yield WatchModelsEvent(type="served", model="embedder", version=version)
            break
        raise grpc.aio.AioRpcError(grpc.StatusCode.UNKNOWN, grpc.aio.Metadata(), grpc.aio.Metadata())


async def test_watching_outlives_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = EndingStreams()

    @asynccontextmanager
    async def connected(_address: str | None) -> AsyncIterator[tuple[Any, Any]]:
        yield streams, streams

    monkeypatch.setattr(model_calls, "_connected", connected)
    monkeypatch.setattr(model_calls, "_WATCH_AGAIN_S", 0)
    shown: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError):
        await model_calls.watch(None, shown.append)
    assert shown == ["embedder version 1 serves", "embedder version 2 serves"]

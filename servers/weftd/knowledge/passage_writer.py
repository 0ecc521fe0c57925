"""Writes to the passage stores, one writer at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import numpy.typing as npt

from weftd.stores.passages.port import Passage, PassageStore, Scope

__all__ = ["PassageWriter"]

# So many ids go into one filter.
_IDS = 500


class PassageWriter:
    """All stores hold the same passages. `alone` keeps a purge from coming between a check and a put."""

    def __init__(self, stores: Sequence[PassageStore]) -> None:
        self._stores = stores
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._lock:
            yield

    async def put(
        self, tenant: str, model_id: str, passages: Sequence[Passage], vectors: npt.NDArray[np.float32]
    ) -> None:
        for store in self._stores:
            await store.put(tenant, model_id, passages, vectors)

    async def delete(self, tenant: str, dataset_id: str, document_ids: Sequence[str]) -> None:
        """Removes the passages of these documents; of none where there are no ids."""
        for first in range(0, len(document_ids), _IDS):
            some = tuple(document_ids[first : first + _IDS])
            for store in self._stores:
                # A delete that finds nothing would still write a new version of the table.
                if await store.count(Scope(tenant, (dataset_id,), some)):
                    await store.delete(tenant, dataset_id, some)

    async def compact(self, tenant: str, *, erase: bool = False) -> None:
        for store in self._stores:
            await store.compact(tenant, erase=erase)

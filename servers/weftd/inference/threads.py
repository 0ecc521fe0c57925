"""A model in this process: its batches on threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from weftd.inference.batching import Batcher, Limits

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
Device = Literal["cpu", "gpu"]

# On a CPU a batch of long texts is no quicker than they are one by one, and a short one would wait for
# them; a GPU is idle without.
_MOST_BYTES: Final[dict[Device, int]] = {"cpu": 1_024, "gpu": 262_144}
# Portions of many texts under way, for each thread: none is idle while the loop has other work.
_AHEAD: Final = 2


class ModelThreads(Generic[T]):
    """`compute` on `count` threads, one batch on each; idle ones sleep. It releases the GIL."""

    def __init__(
        self,
        compute: Callable[[list[T]], Floats],
        name: str,
        count: int,
        batch_size: int,
        delay_s: float,
        device: Device,
    ) -> None:
        self.at_once = _AHEAD * count
        self.limits = Limits(batch_size, _MOST_BYTES[device], delay_s)
        self._compute = compute
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._batcher: Batcher[T, Any] = Batcher(self._start, count, self.limits)

    @property
    def waiting(self) -> int:
        """Portions that wait for a thread; for any thread."""
        return self._batcher.waiting

    async def run(self, items: Sequence[T], length: int) -> Sequence[Any]:
        """A row for each of `items`, which stay together; `length`: bytes of the longest."""
        return await self._batcher.submit(items, length)

    def _start(self, batch: list[T]) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._executor, self._compute, batch)

    async def close(self) -> None:
        """Waits for the batches that run."""
        await self._batcher.close()
        await asyncio.to_thread(self._executor.shutdown, wait=True)

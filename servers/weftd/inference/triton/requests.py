"""A model on Triton that gives one row for each item."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE, ERROR_REASON_MODEL_BROKEN
from weftd.errors import Unavailable
from weftd.inference.batching import Batcher, Limits
from weftd.inference.triton.client import Answer, Tensors, Triton

T = TypeVar("T")

# Of the texts of a request, the longest times their number: a cancel need not wait for a large one.
_MOST_BYTES: Final = 4_096
# Requests for each instance of the model: one that it computes, and one for it to go on with.
_AHEAD: Final = 2
_POLL_S: Final = 0.1


class Requests(Generic[T]):
    """Batches of items for `model` of `triton`: many callers' in one request, while others are under way.

    `pack` makes the tensors, `unpack` takes the rows of an answer.
    """

    def __init__(
        self,
        triton: Triton,
        model: str,
        pack: Callable[[Sequence[T]], Tensors],
        unpack: Callable[[Answer], npt.NDArray[np.float32]],
    ) -> None:
        self.at_once = 1
        self.limits = Limits(1, _MOST_BYTES, 0)
        self._triton = triton
        self._model = model
        self._pack = pack
        self._unpack = unpack
        self._batcher: Batcher[T, Any]

    async def connect(self, delay_s: float, limit_s: float) -> None:
        """Waits for the model, and learns how much it takes. Raises `Unavailable` after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                while not await self._triton.is_ready(self._model):  # noqa: ASYNC110  # it is elsewhere
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._unavailable() from None
        config = await self._triton.config(self._model)
        instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
        self.at_once = _AHEAD * max(1, instances)
        self.limits = Limits(max(1, config.max_batch_size), _MOST_BYTES, delay_s)
        self._batcher = Batcher(self._start, self.at_once, self.limits)

    @property
    def waiting(self) -> int:
        """Portions that wait for their request; for any thread."""
        return self._batcher.waiting

    async def run(self, items: Sequence[T], length: int) -> Sequence[Any]:
        """A row for each of `items`, which stay together; `length`: bytes of the longest."""
        return await self._batcher.submit(items, length)

    def _start(self, batch: list[T]) -> asyncio.Future[Any]:
        return asyncio.create_task(self._infer(batch))

    async def _infer(self, batch: list[T]) -> npt.NDArray[np.float32]:
        answer = await self._triton.infer(self._model, self._pack(batch))
        try:
            rows = self._unpack(answer)
        except (KeyError, IndexError):
            raise self._broken("lacks a tensor") from None
        # They go to several callers: none may get another's, nor keep what is no number.
        if len(rows) != len(batch):
            raise self._broken(f"has {len(rows)} rows for {len(batch)} inputs")
        if not np.isfinite(rows).all():
            raise self._broken("holds what is no number")
        return rows

    async def close(self) -> None:
        """Cancels what is under way."""
        await self._batcher.close()

    async def ping(self) -> None:
        """Raises `Unavailable` where the model is not served now."""
        if not await self._triton.is_ready(self._model):
            raise self._unavailable()

    def _broken(self, what: str) -> Unavailable:
        return Unavailable(
            ERROR_REASON_MODEL_BROKEN,
            f"The answer of the model {self._model} {what}. Try again later, or go back to an older version.",
            metadata={"model": self._model},
        )

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The model {self._model} is not served by Triton at {self._triton.address}. Start Triton with "
            "that model, or mend WEFT_TRITON_URL.",
            metadata={"backend": self._model},
        )


def text_tensor(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """(len(texts), 1) of UTF-8."""
    return np.array([[text.encode("utf-8", "replace")] for text in texts], object)

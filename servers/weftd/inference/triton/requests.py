"""A model on Triton that gives one row for each item."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd.errors import Unavailable
from weftd.inference.batching import Limits
from weftd.inference.triton.client import Answer, Tensors, Triton

T = TypeVar("T")

# Of a request: Triton puts small ones together again, and a cancel need not wait for a large one.
_MOST_BYTES: Final = 4_096
# Requests of one bulk call under way: enough for several instances, few enough for others to get between.
_AT_ONCE: Final = 8
_POLL_S: Final = 0.1


class Requests(Generic[T]):
    """Runs items on `model` of `triton`. `pack` makes the tensors, `unpack` takes the rows of an answer."""

    def __init__(
        self,
        triton: Triton,
        model: str,
        pack: Callable[[Sequence[T]], Tensors],
        unpack: Callable[[Answer], npt.NDArray[np.float32]],
    ) -> None:
        self.waiting = 0
        self.at_once = _AT_ONCE
        self.limits = Limits(1, _MOST_BYTES, 0)
        self.address = triton.address
        self._triton = triton
        self._model = model
        self._pack = pack
        self._unpack = unpack

    async def connect(self, limit_s: float) -> None:
        """Waits for the model, and learns how much it takes. Raises `Unavailable` after `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                while not await self._triton.is_ready(self._model):  # noqa: ASYNC110  # it is elsewhere
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise self._unavailable() from None
        size = (await self._triton.config(self._model)).max_batch_size
        self.limits = Limits(max(1, size), _MOST_BYTES, 0)

    async def run(self, items: Sequence[T], length: int = 0) -> npt.NDArray[np.float32]:
        """One request, of at most `limits.size` items."""
        self.waiting += 1
        try:
            return self._unpack(await self._triton.infer(self._model, self._pack(items)))
        finally:
            self.waiting -= 1

    async def ping(self) -> None:
        """Raises `Unavailable` where the model is not served now."""
        if not await self._triton.is_ready(self._model):
            raise self._unavailable()

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The model {self._model} is not served by Triton at {self.address}. Start Triton with that "
            "model, or mend WEFT_TRITON_URL.",
            metadata={"backend": self._model},
        )


def text_tensor(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """(len(texts), 1) of UTF-8."""
    return np.array([[text.encode("utf-8", "replace")] for text in texts], object)

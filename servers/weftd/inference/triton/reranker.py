"""The cross-encoder that Triton serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from weftd.inference.bulk import in_portions, pair_bytes
from weftd.inference.model_code import load
from weftd.inference.triton.client import Triton
from weftd.inference.triton.requests import Requests, text_tensor
from weftd.text.language import is_east_asian

__all__ = ["TritonReranker"]

_CONNECT_LIMIT_S: Final = 20.0


class TritonReranker:
    """A `Reranker` over the tensors of `triton_models/reranker`. Closing it leaves `triton` open."""

    def __init__(self, triton: Triton, *, east_asian: bool) -> None:
        """For `connect`. `east_asian`: whether the model knows Chinese, Japanese and Korean."""
        self._east_asian = east_asian
        self._requests: Requests[tuple[str, str]] = Requests(
            triton,
            "reranker",
            lambda pairs: {
                "QUERY": text_tensor([query for query, _ in pairs]),
                "PASSAGE": text_tensor([passage for _, passage in pairs]),
            },
            lambda answer: answer.outputs["SCORE"].reshape(-1),
        )

    @classmethod
    async def connect(
        cls,
        triton: Triton,
        directory: Path,
        *,
        delay_s: float = 0.1,
        limit_s: float = _CONNECT_LIMIT_S,
    ) -> TritonReranker:
        """Waits for `triton` to serve the model, whose tokenizer tells its languages from `directory`.

        `delay_s`: how long a passage may wait, while requests are under way, for others of its length.

        Raises `Unavailable` after `limit_s`, and ValueError where the directory holds no model.
        """
        knows_east_asian = load("reranker", "cross_encoder").knows_east_asian
        reranker = cls(triton, east_asian=await asyncio.to_thread(knows_east_asian, directory))
        await reranker._requests.connect(delay_s, limit_s)
        return reranker

    @property
    def waiting(self) -> int:
        return self._requests.waiting

    def supports(self, text: str) -> bool:
        return self._east_asian or not is_east_asian(text)

    async def score(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        pairs = [(query, passage) for passage in passages]
        return await in_portions(pairs, pair_bytes, np.empty(len(pairs), np.float32), self._requests)

    async def ping(self) -> None:
        await self._requests.ping()

    async def close(self) -> None:
        await self._requests.close()

"""A cross-encoder by onnxruntime, in process: `triton_models/reranker` without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weftd.inference.bulk import in_portions, pair_bytes
from weftd.inference.model_code import load
from weftd.inference.threads import Device, ModelThreads
from weftd.text.language import is_east_asian


class OnnxReranker:
    """`Reranker` on `threads` threads, one batch on each; idle threads sleep."""

    def __init__(self, model: Any, threads: int, batch_size: int, delay_s: float, device: Device) -> None:
        """`model` is a `CrossEncoder` of triton_models/reranker/1/cross_encoder.py."""
        self._model = model
        self._threads: ModelThreads[tuple[str, str]] = ModelThreads(
            model.score, "rerank", threads, batch_size, delay_s, device
        )

    @property
    def waiting(self) -> int:
        return self._threads.waiting

    def supports(self, text: str) -> bool:
        return self._model.east_asian or not is_east_asian(text)

    async def score(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        pairs = [(query, passage) for passage in passages]
        return await in_portions(pairs, pair_bytes, np.empty(len(pairs), np.float32), self._threads)

    async def ping(self) -> None: ...

    async def close(self) -> None:
        await self._threads.close()


def open_reranker(
    directory: Path,
    cache: Path,
    threads: int,
    *,
    batch_size: int = 10,
    delay_s: float = 0.1,
    device: Device = "cpu",
) -> OnnxReranker:
    """Loads the cross-encoder in `directory`; `cache` holds converted files. Blocking.

    For how the directory is laid out see triton_models/reranker/README.md. Raises ValueError, which
    says what is missing or cannot be read.
    """
    model = load("reranker", "cross_encoder").CrossEncoder(directory, cache, device, batch_size)
    return OnnxReranker(model, threads, batch_size, delay_s, device)

"""Sentence embeddings by onnxruntime, in process: `triton_models/embedder` without Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weftd.inference.bulk import in_portions, text_bytes
from weftd.inference.model_code import load
from weftd.inference.threads import Device, ModelThreads
from weftd.text.language import is_east_asian


class OnnxEmbedder:
    """`Embedder` on `threads` threads, one batch on each; idle threads sleep."""

    def __init__(self, encoder: Any, threads: int, batch_size: int, delay_s: float, device: Device) -> None:
        """`encoder` is an `Encoder` of triton_models/embedder/1/encoder.py."""
        self.model_id: str = encoder.model.model_id
        self.max_tokens: int = encoder.model.max_tokens
        self.dim: int = encoder.dim
        self._encoder = encoder
        self._threads: ModelThreads[str] = ModelThreads(
            encoder.embed, "embed", threads, batch_size, delay_s, device
        )

    @property
    def waiting(self) -> int:
        return self._threads.waiting

    def supports(self, text: str) -> bool:
        return self._encoder.model.east_asian or not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dim), np.float32)
        return await in_portions(texts, text_bytes, vectors, self._threads)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = self._encoder.tokens.spans(text)
        return spans

    async def ping(self) -> None: ...

    async def close(self) -> None:
        await self._threads.close()


def open_embedder(
    directory: Path | None,
    cache: Path,
    threads: int,
    *,
    batch_size: int = 10,
    delay_s: float = 0.1,
    device: Device = "cpu",
) -> OnnxEmbedder:
    """Loads the model in `directory`, or all-MiniLM-L6-v2 for None; `cache` holds converted files. Blocking.

    For how the directory is laid out see triton_models/embedder/README.md. Raises ValueError, which
    says what is missing or cannot be read.
    """
    code = load("embedder", "encoder")
    encoder = code.Encoder(code.describe(directory), cache, device, batch_size)
    return OnnxEmbedder(encoder, threads, batch_size, delay_s, device)

"""The embedding model that Triton serves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd.errors import Unavailable
from weftd.inference.bulk import in_portions, text_bytes
from weftd.inference.model_code import load
from weftd.inference.triton.client import Answer, Triton
from weftd.inference.triton.requests import Requests, text_tensor
from weftd.text.language import is_east_asian

__all__ = ["TritonEmbedder"]

_CONNECT_LIMIT_S: Final = 20.0


class TritonEmbedder:
    """An `Embedder` over the tensors of `triton_models/embedder`. Closing it leaves `triton` open.

    Tokens and languages are told here, from the files of the same model.
    """

    def __init__(self, triton: Triton, description: Any, tokens: Any) -> None:
        """For `connect`. What is given comes from triton_models/embedder/1/encoder.py."""
        self.model_id: str = description.model_id
        self.max_tokens: int = description.max_tokens
        self.dim = 0
        self._east_asian: bool = description.east_asian
        self._tokens = tokens
        self._requests: Requests[str] = Requests(
            triton, "embedder", lambda texts: {"TEXT": text_tensor(texts)}, self._vectors
        )

    @classmethod
    async def connect(
        cls,
        triton: Triton,
        directory: Path | None,
        *,
        delay_s: float = 0.1,
        limit_s: float = _CONNECT_LIMIT_S,
    ) -> TritonEmbedder:
        """Waits for `triton` to serve the model in `directory` (None: all-MiniLM-L6-v2).

        `delay_s`: how long a text may wait, while requests are under way, for others of its length.

        Raises `Unavailable` after `limit_s`, and ValueError where the directory holds no model or Triton
        serves another one.
        """
        code = load("embedder", "encoder")
        description = await asyncio.to_thread(code.describe, directory)
        embedder = cls(triton, description, await asyncio.to_thread(code.Tokens, description))
        await embedder._requests.connect(delay_s, limit_s)
        try:
            (vector,) = await embedder._requests.run([""], 0)
            embedder.dim = len(vector)
        except _AnotherModel as error:
            raise ValueError(
                f"Triton at {triton.address} serves the embedding model {error.served}, and the one set here "
                f"is {error.wanted}. Name the same directory in WEFT_EMBEDDER and in Triton's "
                "embedder/config.pbtxt."
            ) from None
        return embedder

    def _vectors(self, answer: Answer) -> npt.NDArray[np.float32]:
        served = answer.outputs["MODEL_ID"].flat[0].decode()
        if served != self.model_id:
            raise _AnotherModel(served, self.model_id)
        return answer.outputs["EMBEDDING"]

    @property
    def waiting(self) -> int:
        return self._requests.waiting

    def supports(self, text: str) -> bool:
        return self._east_asian or not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return await in_portions(
            texts, text_bytes, np.empty((len(texts), self.dim), np.float32), self._requests
        )

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = self._tokens.spans(text)
        return spans

    async def ping(self) -> None:
        await self._requests.ping()

    async def close(self) -> None:
        await self._requests.close()


class _AnotherModel(Unavailable):
    def __init__(self, served: str, wanted: str) -> None:
        self.served, self.wanted = served, wanted
        super().__init__(
            ERROR_REASON_BACKEND_UNAVAILABLE,
            f"Triton serves the embedding model {served} now, and what is indexed was made with {wanted}. "
            "Roll it back, or restart Weft with the same model.",
            metadata={"backend": "embedder", "model_id": served},
        )

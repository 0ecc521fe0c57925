"""What turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Embedder(Protocol):
    """An embedding model. Equal texts have equal vectors; the cosine of two vectors is their dot product.

    `model_id` names the model and its version: two embedders with one id give the same vectors, so
    what was indexed under it can be searched with it. `dim` is the length of a vector. A text longer
    than `max_tokens` of the model's tokens is cut there.
    """

    model_id: str
    dim: int
    max_tokens: int

    def supports(self, text: str) -> bool:
        """Whether the model knows the language of `text`. Cheap; may be called on the event loop."""
        ...

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of `texts` in their order: (len(texts), dim), each of length 1.

        Runs on threads that release the GIL. When cancelled, batches that have not begun are dropped.
        Any number of texts; an empty one has a vector too.
        """
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (characters of `text`) of each token the model sees in it, in order, uncut.

        Blocking; call it off the event loop.
        """
        ...

    async def close(self) -> None:
        """Waits for running batches and frees the model."""
        ...

"""Passages and the two ways to find them: by vectors and by words.

Both ports hold the same passages under a tenant and the embedding model they were indexed with. A
tenant sees its own passages only. A tenant, dataset, document or model that was never put has none:
asking for it is no error. What a call acknowledged is on disk and seen by every process at once.

Every method raises `errors.Unavailable` (BACKEND_UNAVAILABLE) when the store does not answer.
A cancelled call stops waiting at once; a write may still happen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,4}$")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. (`document_id`, `ordinal`) names it within a tenant.

    `page` counts from 1, None where the format has none; `heading` is empty where there is none.
    """

    dataset_id: str
    document_id: str
    ordinal: int
    name: str
    page: int | None
    heading: str
    content: str
    uploaded_at_ms: int


@dataclass(frozen=True, slots=True)
class Scope:
    """What is searched. An empty tuple or None sets no limit; both ends of the time are included."""

    tenant: str
    dataset_ids: tuple[str, ...] = ()
    document_ids: tuple[str, ...] = ()
    uploaded_from_ms: int | None = None
    uploaded_to_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """`score`: larger is better. A cosine, or a BM25 score of one query (comparable within it only)."""

    passage: Passage
    score: float


def searchable(passage: Passage) -> str:
    """The text by which a passage is found, for vectors and words alike: what it is about, then itself.

    The document's name without its suffix and the heading carry much of what a passage leaves out.
    """
    title = _SUFFIX.sub("", passage.name).replace("_", " ")
    parts = (title, passage.heading, passage.content)
    return "\n".join(part for part in parts if part.strip())


class PassageStore(Protocol):
    """What both ports share."""

    async def put(
        self,
        tenant: str,
        model_id: str,
        passages: Sequence[Passage],
        vectors: npt.NDArray[np.float32],
    ) -> None:
        """Stores `passages` with their `vectors` (len(passages), dim); replaces those put before.

        Of one key put by two callers at the same moment both may stay, until it is put or deleted again.
        """
        ...

    async def delete(self, tenant: str, dataset_id: str, document_ids: Sequence[str] = ()) -> None:
        """Removes the passages of these documents of the dataset, or of all, under every model.

        They are found no more when this returns; `compact` with `erase` takes their bytes off the disk.
        """
        ...

    async def count(self, scope: Scope) -> int:
        """How many passages the scope holds, under every model."""
        ...

    async def compact(self, tenant: str, *, erase: bool = False) -> None:
        """Brings the indexes up to date; call it after a job.

        `erase` also takes all that was deleted off the disk, out of the indexes too, which costs writing
        the rest anew.
        """
        ...

    async def ping(self) -> None:
        """Returns when the store answers."""
        ...

    async def close(self) -> None: ...


class DensePassages(PassageStore, Protocol):
    async def search(
        self, scope: Scope, model_id: str, vector: npt.NDArray[np.float32], limit: int
    ) -> list[Hit]:
        """The passages nearest to `vector` (dim,), of unit length, best first; `score` is the cosine."""
        ...


class LexicalPassages(PassageStore, Protocol):
    async def match(self, scope: Scope, model_id: str, tokens: Sequence[str], limit: int) -> list[Hit]:
        """The passages that hold any of `tokens` (of `text.tokens`), by BM25, best first."""
        ...

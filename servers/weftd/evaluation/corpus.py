"""The documents of a question set, indexed as in service, in a store of their own."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from weftd.evaluation.questions import Document
from weftd.inference.port import Embedder
from weftd.retrieval.search import Searcher
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Passage, Scope, searchable

__all__ = ["SCOPE", "searcher_over"]

SCOPE = Scope("evaluation")
_BATCH = 512


@asynccontextmanager
async def searcher_over(documents: Sequence[Document], embedder: Embedder) -> AsyncIterator[Searcher]:
    """A searcher that finds each document as one passage, its key as `document_id`, within `SCOPE`."""
    with tempfile.TemporaryDirectory(prefix="weft-eval-") as directory:
        store = await LancePassages.connect(directory)
        try:
            for start in range(0, len(documents), _BATCH):
                batch = [_passage(each) for each in documents[start : start + _BATCH]]
                vectors = await embedder.embed([searchable(passage) for passage in batch])
                await store.put(SCOPE.tenant, embedder.model_id, batch, vectors)
            await store.compact(SCOPE.tenant)
            yield Searcher(store, store, embedder)
        finally:
            await store.close()


def _passage(document: Document) -> Passage:
    # A name has a suffix, which `searchable` takes away: a title with a dot in it must not lose its end.
    name = f"{document.name}.txt" if document.name else ""
    return Passage("evaluation", document.key, 0, name, None, "", document.text, 0)

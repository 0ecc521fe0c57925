"""`weft eval`: the measures of the rooms, on the embedding and language models of the settings."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from weft.v1.common_pb2 import Reference
from weftd import compose
from weftd.models.evaluate import evaluate_answers, load_set
from weftd.retrieval.evaluate import evaluate_retrieval
from weftd.retrieval.search import Searcher
from weftd.settings import Settings
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Passage, Scope, searchable

__all__ = ["answers", "retrieval"]

_TENANT = "evaluation"
_BATCH = 512
_REFERENCES = 5


async def retrieval(settings: Settings, file: Path, console: Console) -> None:
    """Prints recall of each route and of their fusion."""
    async with compose.open_embedder(settings) as embedder:
        with console.status("Indexing and asking …"):
            rows = await evaluate_retrieval(file, embedder)
    table = Table("route", "questions", "recall@2", "recall@5", title=file.name)
    for row in rows:
        table.add_row(row.route, str(row.questions), f"{row.at_2:.1%}", f"{row.at_5:.1%}")
    console.print(table)


async def answers(settings: Settings, file: Path, console: Console) -> None:
    """Prints how many questions are answered with, and declined without, their passages."""
    async with AsyncExitStack() as stack:
        embedder = await stack.enter_async_context(compose.open_embedder(settings))
        models = await stack.enter_async_context(compose.language_models(settings, embedder))
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-eval-"))
        store = await LancePassages.connect(directory)
        stack.push_async_callback(store.close)
        documents = load_set(file).documents
        with console.status("Indexing …"):
            for start in range(0, len(documents), _BATCH):
                batch = [
                    Passage("evaluation", each.key, 0, each.name, None, "", each.text, 0)
                    for each in documents[start : start + _BATCH]
                ]
                vectors = await embedder.embed([searchable(each) for each in batch])
                await store.put(_TENANT, embedder.model_id, batch, vectors)
            await store.compact(_TENANT)
        searcher = Searcher(store, store, embedder)

        async def search(question: str, exclude: Collection[str]) -> list[Reference]:
            found = await searcher.search(question, Scope(_TENANT), _REFERENCES + len(exclude))
            kept = [hit for hit in found.hits if hit.passage.document_id not in exclude][:_REFERENCES]
            return [
                Reference(
                    document_id=hit.passage.document_id,
                    name=hit.passage.name,
                    content=hit.passage.content,
                    score=hit.score,
                )
                for hit in kept
            ]

        with console.status("Asking each question twice …"):
            report = await evaluate_answers(file, search, models.default)
    console.print(str(report), highlight=False)

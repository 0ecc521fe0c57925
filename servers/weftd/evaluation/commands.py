"""`weft eval`: the measures on the embedding and language models of the settings, printed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from weftd import compose, compose_models
from weftd.evaluation.answers import evaluate_answers
from weftd.evaluation.questions import read_questions
from weftd.evaluation.retrieval import evaluate_retrieval
from weftd.settings import Settings

__all__ = ["answers", "retrieval"]


async def retrieval(settings: Settings, file: Path, console: Console) -> None:
    """Prints recall of each route and of their fusion."""
    _check(file)
    async with compose_models.open_embedder(settings) as embedder:
        with console.status("Indexing and asking …"):
            rows = await evaluate_retrieval(file, embedder)
    table = Table("route", "questions", "recall@2", "recall@5", title=file.name)
    for row in rows:
        table.add_row(row.route, str(row.questions), f"{row.at_2:.1%}", f"{row.at_5:.1%}")
    console.print(table)


async def answers(settings: Settings, file: Path, console: Console) -> None:
    """Prints how many questions are answered with, and declined without, their passages."""
    _check(file)
    async with (
        compose_models.open_embedder(settings) as embedder,
        compose_models.language_models(settings, embedder) as models,
    ):
        with console.status("Indexing, and asking each question twice …"):
            report = await evaluate_answers(file, embedder, models.default)
    console.print(str(report), highlight=False)


def _check(file: Path) -> None:
    """CannotStart for a file that holds no questions, before a model is loaded for it."""
    with compose.plainly():
        read_questions(file)

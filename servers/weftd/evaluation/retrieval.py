"""Recall of each route and of their fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weftd.evaluation.corpus import SCOPE, searcher_over
from weftd.evaluation.questions import Case, read_questions
from weftd.inference.port import Embedder
from weftd.retrieval.search import ROUTES, Searcher

__all__ = ["Recall", "evaluate_retrieval"]

_CUTS = (2, 5)


@dataclass(frozen=True, slots=True)
class Recall:
    """Mean over the `questions` of the share of gold documents among the first 2 and 5, from 0 to 1.

    The dense route counts only questions in a language that the embedder knows.
    """

    route: str
    questions: int
    at_2: float
    at_5: float


async def evaluate_retrieval(path: Path, embedder: Embedder) -> list[Recall]:
    """Recall of "dense", "lexical" and "fused" on the question set in `path` (see `read_questions`)."""
    questions = read_questions(path)
    known = [case for case in questions.cases if embedder.supports(case.question)]
    async with searcher_over(questions.documents, embedder) as searcher:
        return [
            await _recall("dense", searcher, known, ("dense",)),
            await _recall("lexical", searcher, questions.cases, ("lexical",)),
            await _recall("fused", searcher, questions.cases, ROUTES),
        ]


async def _recall(name: str, searcher: Searcher, cases: Sequence[Case], routes: Sequence[str]) -> Recall:
    sums = dict.fromkeys(_CUTS, 0.0)
    for case in cases:
        found = await searcher.search(case.question, SCOPE, max(_CUTS), routes)
        ranked = [hit.passage.document_id for hit in found.hits]
        for cut in _CUTS:
            sums[cut] += len(case.gold & set(ranked[:cut])) / len(case.gold)
    count = max(1, len(cases))
    return Recall(name, len(cases), *(sums[cut] / count for cut in _CUTS))

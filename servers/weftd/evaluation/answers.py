"""Are answerable questions answered, and the others said to be unanswered?

Each question is asked twice: of all documents, and of all but those that hold its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from weft.v1.common_pb2 import Message, Reference
from weft.v1.models_pb2 import GenerateRequest
from weftd.evaluation.corpus import SCOPE, searcher_over
from weftd.evaluation.questions import Case, read_questions
from weftd.inference.port import Embedder
from weftd.models.port import LanguageModel
from weftd.retrieval.search import Searcher
from weftd.text.language import is_chinese
from weftd.text.tokens import fold

__all__ = ["AnswersReport", "answer", "evaluate_answers", "grounded_request", "search_among"]

_AT_ONCE = 4
_REFERENCES = 5

# The best passages for a question, from all documents but those with the keys given.
Search = Callable[[str, Collection[str]], Awaitable[Sequence[Reference]]]


@dataclass(frozen=True, slots=True)
class AnswersReport:
    """Shares, 0 to 1. `answered`: of the answerable. `declined`: of the others. `contained`: answers to the
    answerable that hold a gold answer. `auc`: how well the model's own score tells the two apart; None where
    it has none.
    """

    language: str
    questions: int
    answered: float
    declined: float
    contained: float
    auc: float | None

    def __str__(self) -> str:
        lines = [
            f"{self.questions} {self.language} questions, each with and without its documents",
            f"answered, of the answerable:            {self.answered:7.1%}",
            f"said to be unanswered, of the others:   {self.declined:7.1%}",
            f"answers that hold the expected words:   {self.contained:7.1%}",
        ]
        if self.auc is not None:
            lines.append(f"area under the ROC curve of the score:  {self.auc:7.3f}")
        return "\n".join(lines)


@runtime_checkable
class Judge(Protocol):
    """A model that tells how sure it is that the passages hold the answer; larger is surer."""

    async def answerability(self, request: GenerateRequest) -> float: ...


async def evaluate_answers(path: Path, embedder: Embedder, model: LanguageModel) -> AnswersReport:
    """Asks every question of the set in `path` that has an answer, twice, and counts."""
    questions = read_questions(path)
    cases = [case for case in questions.cases if case.answers]
    async with searcher_over(questions.documents, embedder) as searcher:
        return await _ask_all(cases, search_among(searcher), model)


def search_among(searcher: Searcher) -> Search:
    async def search(question: str, exclude: Collection[str]) -> list[Reference]:
        found = await searcher.search(question, SCOPE, _REFERENCES + len(exclude))
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

    return search


async def _ask_all(cases: Sequence[Case], search: Search, model: LanguageModel) -> AnswersReport:
    limit = asyncio.Semaphore(_AT_ONCE)

    async def ask(case: Case, exclude: Collection[str]) -> tuple[str, bool, float]:
        async with limit:
            request = grounded_request(case.question, await search(case.question, exclude))
            text, answered = await answer(request, model)
            return text, answered, await model.answerability(request) if isinstance(model, Judge) else 0.0

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(case, ())) for case in cases]
        asked_in_vain = [group.create_task(ask(case, case.gold)) for case in cases]
    with_gold = [task.result() for task in asked]
    without = [task.result() for task in asked_in_vain]
    hits = [
        answered and any(_folded(gold) in _folded(text) for gold in case.answers)
        for case, (text, answered, _) in zip(cases, with_gold, strict=True)
    ]
    scores = [score for *_, score in with_gold], [score for *_, score in without]
    return AnswersReport(
        language="Chinese" if is_chinese("".join(case.question for case in cases)) else "English",
        questions=len(cases),
        answered=_share([answered for _, answered, _ in with_gold]),
        declined=_share([not answered for _, answered, _ in without]),
        contained=_share(hits),
        auc=_area(*scores) if isinstance(model, Judge) else None,
    )


def grounded_request(question: str, passages: Sequence[Reference]) -> GenerateRequest:
    """The question with the passages, numbered from 1."""
    request = GenerateRequest(messages=[Message(role="user", content=question)], grounded=True)
    for number, passage in enumerate(passages, 1):
        request.passages.append(passage)
        request.passages[-1].id = number
    return request


async def answer(request: GenerateRequest, model: LanguageModel) -> tuple[str, bool]:
    """The model's text, and whether it says that it is an answer."""
    text = reason = ""
    async with aclosing(model.generate(request)) as events:
        async for event in events:
            text += event.content
            reason = event.finish_reason or reason
    return text, reason != "no_answer"


def _area(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: how often a positive score is above a negative one, ties half."""
    above = sum((yes > no) + (yes == no) / 2 for yes in positive for no in negative)
    return above / (len(positive) * len(negative))


def _folded(text: str) -> str:
    return "".join(character for character in fold(text) if character.isalnum())


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)

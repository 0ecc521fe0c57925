"""Recall of each route and of their fusion, on a file of questions whose passages are known.

Everything runs as in service: the passages are indexed into a store of their own, in a temporary
directory, and the questions go through the same searcher.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weftd.inference.port import Embedder
from weftd.retrieval.search import ROUTES, Searcher
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Passage, Scope, searchable

_TENANT = "evaluation"
_DATASET = "evaluation"
_BATCH = 512
_CUTS = (2, 5)


@dataclass(frozen=True, slots=True)
class Question:
    """`gold`: indexes of the passages that hold the answer, at least one."""

    text: str
    gold: frozenset[int]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """`passages`: (title, text) each."""

    passages: list[tuple[str, str]]
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Recall:
    """Mean over the `questions` of the share of gold passages among the first 2 and 5, from 0 to 1.

    The dense route counts only questions in a language that the embedder knows.
    """

    route: str
    questions: int
    at_2: float
    at_5: float


async def evaluate_retrieval(path: Path, embedder: Embedder) -> list[Recall]:
    """Recall of "dense", "lexical" and "fused" on the question set in `path` (see `read_questions`)."""
    questions = read_questions(path)
    with tempfile.TemporaryDirectory(prefix="weft-eval-") as directory:
        store = await LancePassages.connect(directory)
        try:
            await _index(store, embedder, questions.passages)
            searcher = Searcher(store, store, embedder)
            routes = {**{route: (route,) for route in ROUTES}, "fused": ROUTES}
            return [await _recall(searcher, embedder, questions, name, routes[name]) for name in routes]
        finally:
            await store.close()


def read_questions(path: Path) -> QuestionSet:
    """Reads a set laid out as HotpotQA or MuSiQue with a corpus beside it, or as SQuAD.

    A list of questions `NAME.json` has its passages in `NAME_corpus.json`: a dict from title to
    sentences, or a list of `title` and `text`. Otherwise the file is a dict whose `data` holds
    `paragraphs` with `context` and `qas`. Questions without a gold passage are left out. Raises
    ValueError for any other layout.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict):
            return _squad(content)
        corpus_path = path.with_name(f"{path.stem}_corpus.json")
        if not corpus_path.is_file():
            raise ValueError(f"{path} has its passages in {corpus_path.name}, which is not beside it")
        corpus = json.loads(corpus_path.read_text("utf-8"))
        return _with_corpus(content, list(_passages(corpus)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not laid out as HotpotQA, MuSiQue or SQuAD: {type(error).__name__} {error}"
        ) from error


def _passages(corpus: Any) -> Iterator[tuple[str, str]]:
    if isinstance(corpus, dict):
        yield from ((title, "".join(sentences)) for title, sentences in corpus.items())
    else:
        yield from ((passage["title"], passage["text"]) for passage in corpus)


def _with_corpus(content: list[dict[str, Any]], passages: list[tuple[str, str]]) -> QuestionSet:
    by_both = {passage: index for index, passage in enumerate(passages)}
    by_title = {title: index for index, (title, _) in enumerate(passages)}
    questions = []
    for item in content:
        if "supporting_facts" in item:
            found = [by_title.get(title) for title, _ in item["supporting_facts"]]
        else:
            supporting = [each for each in item["paragraphs"] if each["is_supporting"]]
            found = [by_both.get((each["title"], _text(each))) for each in supporting]
        gold = frozenset(index for index in found if index is not None)
        questions.append(Question(item["question"], gold))
    return QuestionSet(passages, [question for question in questions if question.gold])


def _text(paragraph: Mapping[str, str]) -> str:
    return paragraph["paragraph_text"] if "paragraph_text" in paragraph else paragraph["text"]


def _squad(content: Mapping[str, Any]) -> QuestionSet:
    passages: list[tuple[str, str]] = []
    questions: list[Question] = []
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            gold = frozenset({len(passages)})
            passages.append((article.get("title", ""), paragraph["context"]))
            questions += [
                Question(qa["question"], gold) for qa in paragraph["qas"] if not qa.get("is_impossible")
            ]
    return QuestionSet(passages, questions)


async def _index(store: LancePassages, embedder: Embedder, passages: list[tuple[str, str]]) -> None:
    for start in range(0, len(passages), _BATCH):
        batch = [
            Passage(_DATASET, str(start + index), 0, f"{title}.txt" if title else "", None, "", text, 0)
            for index, (title, text) in enumerate(passages[start : start + _BATCH])
        ]
        vectors = await embedder.embed([searchable(passage) for passage in batch])
        await store.put(_TENANT, embedder.model_id, batch, vectors)
    await store.compact(_TENANT)


async def _recall(
    searcher: Searcher, embedder: Embedder, questions: QuestionSet, name: str, routes: tuple[str, ...]
) -> Recall:
    asked = [
        question for question in questions.questions if name != "dense" or embedder.supports(question.text)
    ]
    sums = dict.fromkeys(_CUTS, 0.0)
    for question in asked:
        found = await searcher.search(question.text, Scope(_TENANT), max(_CUTS), routes)
        ranked = [int(hit.passage.document_id) for hit in found.hits]
        for cut in _CUTS:
            sums[cut] += len(question.gold & set(ranked[:cut])) / len(question.gold)
    count = max(1, len(asked))
    return Recall(name, len(asked), *(sums[cut] / count for cut in _CUTS))

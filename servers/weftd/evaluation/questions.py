"""Reads question sets in the forms that public ones have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Case", "Document", "QuestionSet", "read_questions"]


@dataclass(frozen=True, slots=True)
class Document:
    """`key` is unique in its set; `name` may be empty and need not be."""

    key: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Case:
    """`gold`: keys of the documents that hold the answer, one or more. `answers` may be empty."""

    question: str
    answers: tuple[str, ...]
    gold: frozenset[str]


@dataclass(frozen=True, slots=True)
class QuestionSet:
    documents: list[Document]
    cases: list[Case]


def read_questions(path: Path) -> QuestionSet:
    """Reads CMRC or SQuAD, HotpotQA or MuSiQue, told apart by their form.

    The documents of HotpotQA and MuSiQue are in `NAME_corpus.json` beside `NAME.json`. Questions that are
    empty or have no gold document are left out. ValueError where the file is none of these.
    """
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        if isinstance(content, dict):
            documents, cases = _squad(content["data"])
        else:
            documents, cases = _with_corpus(content, _corpus(path))
    except (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not laid out as HotpotQA, MuSiQue, CMRC or SQuAD: {type(error).__name__} {error}"
        ) from error
    return QuestionSet(documents, [case for case in cases if case.question.strip() and case.gold])


def _corpus(path: Path) -> Any:
    beside = path.with_name(f"{path.stem}_corpus.json")
    if not beside.is_file():
        raise ValueError(f"{path} has its passages in {beside.name}, which is not beside it: put it there.")
    return json.loads(beside.read_text("utf-8"))


def _squad(data: list[Any]) -> tuple[list[Document], list[Case]]:
    documents: list[Document] = []
    cases: list[Case] = []
    for article in data:
        for paragraph in article["paragraphs"]:
            key = str(len(documents))
            documents.append(Document(key, article.get("title", ""), paragraph["context"]))
            for qa in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in qa.get("answers", ()))
                if not qa.get("is_impossible"):
                    cases.append(Case(qa["question"], answers, frozenset([key])))
    return documents, cases


def _with_corpus(content: list[Any], corpus: Any) -> tuple[list[Document], list[Case]]:
    """HotpotQA's corpus maps titles to sentences; MuSiQue's is a list of titles and texts."""
    if isinstance(corpus, dict):
        texts = [(title, "".join(sentences)) for title, sentences in corpus.items()]
    else:
        texts = [(each["title"], each["text"]) for each in corpus]
    documents = [Document(str(number), title, text) for number, (title, text) in enumerate(texts)]
    keys = {(each.name, each.text): each.key for each in documents}
    by_title = {each.name: each.key for each in documents}
    cases = []
    for each in content:
        if "supporting_facts" in each:
            found = [by_title.get(title) for title, _ in each["supporting_facts"]]
        else:
            supporting = [paragraph for paragraph in each["paragraphs"] if paragraph["is_supporting"]]
            found = [keys.get((paragraph["title"], _text(paragraph))) for paragraph in supporting]
        answers = (each["answer"], *each.get("answer_aliases", ())) if "answer" in each else ()
        cases.append(Case(each["question"], answers, frozenset(key for key in found if key is not None)))
    return documents, cases


def _text(paragraph: dict[str, str]) -> str:
    return paragraph["paragraph_text"] if "paragraph_text" in paragraph else paragraph["text"]

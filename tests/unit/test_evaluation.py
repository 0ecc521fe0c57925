"""Question sets in the layouts of HotpotQA, MuSiQue and SQuAD, their recall, and what is said of answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from weftd.compose import CannotStart
from weftd.evaluation import commands
from weftd.evaluation.answers import evaluate_answers
from weftd.evaluation.questions import read_questions
from weftd.evaluation.retrieval import evaluate_retrieval
from weftd.models.extractive.model import ExtractiveModel
from weftd.settings import Settings
from weftd.text.language import is_east_asian


class Letters:
    model_id, dim, max_tokens = "letters@1", 26, 512

    def supports(self, text: str) -> bool:
        return not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        counts = [[1e-3 + text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]
        vectors = np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return []

    async def close(self) -> None: ...


def write(directory: Path, name: str, content: Any) -> Path:
    path = directory / name
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return path


def hotpot(directory: Path) -> Path:
    corpus = {
        "Zebra": ["Zebras have stripes.", " They live in Africa."],
        "Lion": ["Lions roar."],
        "Owl": ["Owls fly."],
    }
    write(directory, "hotpot_corpus.json", corpus)
    question = {
        "question": "Do zebras and lions roar?",
        "supporting_facts": [["Zebra", 0], ["Lion", 0], ["Zebra", 1]],
    }
    return write(directory, "hotpot.json", [question])


def test_hotpotqa(tmp_path: Path) -> None:
    questions = read_questions(hotpot(tmp_path))
    first = questions.documents[0]
    assert (first.name, first.text) == ("Zebra", "Zebras have stripes. They live in Africa.")
    assert questions.cases[0].gold == {"0", "1"}


def test_musique_tells_passages_of_one_title_apart(tmp_path: Path) -> None:
    corpus = [{"title": "A", "text": "one"}, {"title": "A", "text": "two"}]
    write(tmp_path, "m_corpus.json", corpus)
    paragraphs = [
        {"title": "A", "paragraph_text": "two", "is_supporting": True},
        {"title": "A", "paragraph_text": "one", "is_supporting": False},
    ]
    missing = [{"title": "B", "paragraph_text": "not in the corpus", "is_supporting": True}]
    asked = [{"question": "q", "paragraphs": paragraphs}, {"question": "r", "paragraphs": missing}]
    questions = read_questions(write(tmp_path, "m.json", asked))
    assert [case.gold for case in questions.cases] == [{"1"}]


def test_squad_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    qas = [{"question": "谁？"}, {"question": "何时？", "is_impossible": True}, {"question": ""}]
    paragraphs = [{"context": "一", "qas": []}, {"context": "二", "qas": qas}]
    path = write(tmp_path, "s.json", {"data": [{"title": "题", "paragraphs": paragraphs}]})
    questions = read_questions(path)
    assert [(case.question, case.gold) for case in questions.cases] == [("谁？", {"1"})]


@pytest.mark.parametrize("content", [[{"question": "q"}], {"data": [{}]}, {"other": 1}, 3, [1]])
def test_another_layout_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    write(tmp_path, "x_corpus.json", {})
    with pytest.raises(ValueError, match=r"x\.json"):
        read_questions(write(tmp_path, "x.json", content))


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"alone_corpus\.json"):
        read_questions(write(tmp_path, "alone.json", []))


@pytest.mark.parametrize("measure", [commands.retrieval, commands.answers])
async def test_a_file_without_questions_is_told_plainly(tmp_path: Path, measure: Any) -> None:
    file = tmp_path / "notes.md"
    file.write_text("# Notes")
    with pytest.raises(CannotStart, match=r"notes\.md is not laid out as"):
        await measure(Settings(), file, Console())


async def test_recall_of_each_route_and_of_both(tmp_path: Path) -> None:
    recalls = {recall.route: recall for recall in await evaluate_retrieval(hotpot(tmp_path), Letters())}
    assert set(recalls) == {"dense", "lexical", "fused"}
    assert recalls["lexical"].at_2 == recalls["fused"].at_5 == 1.0
    assert recalls["dense"].questions == 1


async def test_questions_that_the_embedder_cannot_read_are_found_by_their_words(tmp_path: Path) -> None:
    qas = [{"question": "斑马有什么？"}]
    paragraphs = [{"context": "斑马有条纹。", "qas": qas}, {"context": "狮子会吼叫。", "qas": []}]
    path = write(tmp_path, "zh.json", {"data": [{"paragraphs": paragraphs}]})
    dense, lexical, fused = await evaluate_retrieval(path, Letters())
    assert (dense.questions, lexical.at_2, fused.at_2) == (0, 1.0, 1.0)


async def test_answers_are_counted_with_and_without_their_documents(tmp_path: Path) -> None:
    qas = [{"question": "埃菲尔铁塔有多高？", "answers": [{"text": "330米"}]}]
    paragraphs = [{"context": "埃菲尔铁塔高330米。", "qas": qas}, {"context": "西湖位于杭州。", "qas": []}]
    path = write(tmp_path, "zh.json", {"data": [{"paragraphs": paragraphs}]})
    report = await evaluate_answers(path, Letters(), ExtractiveModel())
    assert (report.language, report.questions) == ("Chinese", 1)
    assert (report.answered, report.declined, report.contained, report.auc) == (1, 1, 1, 1)
    assert "100.0%" in str(report)

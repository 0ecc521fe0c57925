"""`weft eval answers` reads the sets it names and counts right."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from weft.v1.common_pb2 import Reference
from weftd.models.evaluate import evaluate_answers, load_set
from weftd.models.extractive.model import ExtractiveModel

SQUAD = {
    "data": [
        {
            "title": "埃菲尔铁塔",
            "paragraphs": [
                {
                    "context": "埃菲尔铁塔高330米。",
                    "qas": [
                        {"question": "埃菲尔铁塔有多高？", "answers": [{"text": "330米"}]},
                        {"question": "", "answers": [{"text": "x"}]},
                    ],
                }
            ],
        },
        {"title": "西湖", "paragraphs": [{"context": "西湖位于杭州。", "qas": []}]},
    ]
}


def written(directory: Path, name: str, content: Any) -> Path:
    path = directory / name
    path.write_text(json.dumps(content), "utf-8")
    return path


async def test_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "squad.json", SQUAD)
    documents = load_set(path).documents

    async def search(question: str, exclude: Collection[str]) -> list[Reference]:
        return [Reference(name=d.name, content=d.text) for d in documents if d.key not in exclude]

    report = await evaluate_answers(path, search, ExtractiveModel())
    assert (report.language, report.questions) == ("Chinese", 1)
    assert (report.answered, report.declined, report.contained, report.auc) == (1, 1, 1, 1)
    assert "100.0%" in str(report)


def test_hotpotqa_and_musique_are_read(tmp_path: Path) -> None:
    written(tmp_path, "hotpot_corpus.json", {"A": ["One.", " Two."], "B": ["Three."]})
    hotpot = load_set(
        written(
            tmp_path, "hotpot.json", [{"question": "Q?", "answer": "Two", "supporting_facts": [["A", 1]]}]
        )
    )
    assert [document.text for document in hotpot.documents] == ["One. Two.", "Three."]
    assert hotpot.cases[0].gold == {"A"}
    paragraphs = [
        {"title": "A", "paragraph_text": "One.", "is_supporting": False},
        {"title": "A", "paragraph_text": "Two.", "is_supporting": True},
    ]
    written(tmp_path, "m_corpus.json", [{"title": "A", "text": "One."}, {"title": "A", "text": "Two."}])
    musique = load_set(
        written(tmp_path, "m.json", [{"question": "Q?", "answer": "2", "paragraphs": paragraphs}])
    )
    gold = next(document for document in musique.documents if document.key in musique.cases[0].gold)
    assert gold.text == "Two."


def test_another_file_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"other_corpus\.json"):
        load_set(written(tmp_path, "other.json", [{"question": "Q?"}]))

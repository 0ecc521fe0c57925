"""Twenty questions, ten of them Chinese, over documents of both languages and every format."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
import pytest

from tests.company_documents import QUESTIONS, UNANSWERED, Question, documents
from tests.servers.mesh import Mesh

RIGHT_PASSAGES, RIGHT_ANSWERS, SAID_TO_BE_UNANSWERED = 18, 16, 8
MOST_SOURCES = 5


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Any:
    """Of a tenant whose documents are indexed."""
    headers = {"Authorization": f"Bearer {mesh.token(f't-{uuid.uuid4().hex[:8]}')}"}
    with httpx.Client(base_url=mesh.url, headers=headers, timeout=60) as session:
        files = [("file", (name, data)) for name, data in documents().items()]
        uploaded = session.post("/api/v1/knowledge/upload", data={"dataset_id": "papers"}, files=files)
        assert [each["status"] for each in uploaded.json()["documents"]] == ["stored"] * len(files)
        session.post("/api/v1/knowledge/index", json={"dataset_id": "papers", "index_type": "vector"})
        deadline = time.monotonic() + 100
        while (status := session.get("/api/v1/knowledge/status/papers").json())["status"] != "ready":
            assert status["status"] != "failed" and time.monotonic() < deadline, status
            time.sleep(0.1)
        assert not status.get("errors"), status
        assert status["documents"] == len(files)
        yield session


def answer(client: httpx.Client, question: str) -> tuple[str, list[dict[str, Any]]]:
    """The text and its references."""
    body = {"messages": [{"role": "user", "content": question}]}
    got = client.post("/api/v1/chat/stream", json=body)
    assert got.status_code == 200, got.text
    events = [json.loads(line.removeprefix("data: ")) for line in got.text.splitlines() if line]
    assert events[-1]["type"] == "done"
    return "".join(event.get("content", "") for event in events), events[-2].get("references", [])


def rests_on(references: list[dict[str, Any]], question: Question) -> bool:
    """The passage that holds the fact is among them, with its page where the format has pages."""
    assert len(references) <= MOST_SOURCES
    return any(
        each["name"] == question.name
        and each.get("page") == question.page
        and question.fact in " ".join(each["content"].split())
        for each in references
    )


def test_the_right_passages_are_found_and_cited(client: httpx.Client) -> None:
    assert len(QUESTIONS) == 20
    assert sum(not question.text.isascii() for question in QUESTIONS) == 10
    found, answered = [], []
    for question in QUESTIONS:
        text, references = answer(client, question.text)
        has_passage, has_fact = rests_on(references, question), question.fact in text
        found.append(has_passage)
        answered.append(has_fact)
        if not (has_passage and has_fact):
            names = [(each["name"], each.get("page")) for each in references]
            print(f"\n{question.text}\n  passage: {has_passage} of {names}\n  answer: {text!r}")
    print(f"\nright passage {sum(found)}/20, fact in the answer {sum(answered)}/20")
    assert sum(found) >= RIGHT_PASSAGES
    assert sum(answered) >= RIGHT_ANSWERS


def test_what_the_documents_do_not_hold_is_said_to_be_unanswered(client: httpx.Client) -> None:
    said = []
    for question in UNANSWERED:
        text, _ = answer(client, question)
        said.append(is_refusal(text))
        if not said[-1]:
            print(f"\n{question}\n  answer: {text!r}")
    print(f"\nsaid to be unanswered {sum(said)}/{len(UNANSWERED)}")
    assert sum(said) >= SAID_TO_BE_UNANSWERED


def is_refusal(text: str) -> bool:
    return "do not" in text or "没有" in text

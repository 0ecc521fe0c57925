"""The requests of the specification, as `curl` sends them, against a whole mesh."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import httpx
import pytest

from tests.servers.mesh import Mesh

TEXT_EN = "# Harbour\n\nThe lighthouse of Brindlemere was built in 1874 by the engineer Odalys Finch.\n"
TEXT_ZH = (
    "# 检索增强生成\n\nRAG（检索增强生成）先从知识库中检索相关段落，再让语言模型根据这些段落回答问题。\n"
)


@pytest.fixture
def client(mesh: Mesh) -> Any:
    # A tenant of its own for each test: nothing that another test left is in the way.
    tenant = f"t-{uuid.uuid4().hex[:8]}"
    headers = {"Authorization": f"Bearer {mesh.token(tenant)}", "X-Tenant-ID": tenant}
    with httpx.Client(base_url=mesh.url, headers=headers, timeout=30) as session:
        yield session


def upload(client: httpx.Client, dataset: str, files: dict[str, bytes]) -> dict[str, Any]:
    parts = [("file", (name, data)) for name, data in files.items()]
    answer = client.post("/api/v1/knowledge/upload", data={"dataset_id": dataset}, files=parts)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def index(client: httpx.Client, dataset: str) -> dict[str, Any]:
    options = {"chunk_size": 512, "overlap": 50, "extract_entities": True, "build_graph": True}
    body = {"dataset_id": dataset, "index_type": "vector", "options": options}
    answer = client.post("/api/v1/knowledge/index", json=body)
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["job_id", "dataset_id", "status"]
    assert answer.json()["status"] == "pending"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = dict(client.get(f"/api/v1/knowledge/status/{dataset}").json())
        if status["status"] in ("ready", "failed"):
            return status
        time.sleep(0.1)
    raise AssertionError(f"never ready: {status}")


def chat(
    client: httpx.Client, question: str, request_id: str | None = None, **more: Any
) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": question}], **more}
    headers = {"X-Request-ID": request_id or uuid.uuid4().hex}
    with client.stream("POST", "/api/v1/chat/stream", json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream"
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event.get("content", "") for event in events if event["type"] == "delta")


def test_upload_index_and_ask(client: httpx.Client) -> None:
    answer = upload(client, "ds_123", {"灯塔 notes.md": TEXT_EN.encode(), "检索.md": TEXT_ZH.encode()})
    assert list(answer) == ["dataset_id", "documents"]
    assert list(answer["documents"][0]) == ["document_id", "name", "bytes", "status"]
    assert [(each["name"], each["status"]) for each in answer["documents"]] == [
        ("灯塔 notes.md", "stored"),
        ("检索.md", "stored"),
    ]
    status = index(client, "ds_123")
    assert list(status)[:5] == ["dataset_id", "status", "progress", "documents", "chunks"]
    assert (status["status"], status["progress"], status["documents"]) == ("ready", 1, 2)

    events = chat(
        client,
        "Who built the lighthouse of Brindlemere?",
        conversation_id="conv_123",
        stream=True,
        temperature=0.7,
        top_k=5,
        use_cache=True,
    )
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events[-2:]] == ["refs", "done"]
    assert all(list(event) == ["type", "content", "seq"] for event in events[:-2])
    assert "Odalys Finch" in text_of(events)
    assert "[1]" in text_of(events)
    first = events[-2]["references"][0]
    assert list(first)[:4] == ["id", "dataset_id", "document_id", "name"]
    assert (first["id"], first["dataset_id"], first["name"]) == (1, "ds_123", "灯塔 notes.md")
    assert list(events[-1]) == ["type", "usage", "seq"]
    assert list(events[-1]["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens"]

    chinese = chat(client, "RAG 先做什么，再做什么？", conversation_id="conv_zh")
    assert "检索" in text_of(chinese)
    assert chinese[-2]["references"][0]["name"] == "检索.md"

    whole = chat(client, "Who built the lighthouse of Brindlemere?", conversation_id="conv_w", stream=False)
    assert [event["type"] for event in whole] == ["delta", "refs", "done"]


def test_same_request_resumes_and_never_starts_again(client: httpx.Client) -> None:
    upload(client, "ds", {"a.md": TEXT_EN.encode()})
    index(client, "ds")
    question = "When was the lighthouse of Brindlemere built?"
    events = chat(client, question, "turn-1", conversation_id="c")
    assert "1874" in text_of(events)
    for seen in range(len(events) + 1):
        again = chat(client, question, "turn-1", conversation_id="c", after_seq=seen)
        assert again == events[seen:]
    messages = client.get("/api/v1/conversations/c").json()["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] == text_of(events)


def test_follow_up_is_answered_from_the_conversation(client: httpx.Client) -> None:
    upload(
        client,
        "ds",
        {"a.md": TEXT_EN.encode(), "b.md": b"# Bakery\n\nThe bakery was founded by Ilse Thorn.\n"},
    )
    index(client, "ds")
    chat(client, "Tell me about the lighthouse of Brindlemere", conversation_id="c")
    assert "Odalys Finch" in text_of(chat(client, "And who built it?", conversation_id="c"))


def test_errors_say_what_to_do(client: httpx.Client) -> None:
    missing = client.get("/api/v1/conversations/nowhere")
    assert missing.status_code == 404
    assert missing.json()["details"][0]["reason"] == "CONVERSATION_NOT_FOUND"
    empty = client.post("/api/v1/chat/stream", json={"conversation_id": "c", "messages": []})
    assert empty.status_code == 400
    assert {detail.get("reason") for detail in empty.json()["details"]} >= {"INVALID_FIELD"}
    graph = client.post("/api/v1/knowledge/index", json={"dataset_id": "none", "index_type": "graph"})
    assert graph.status_code in (404, 501)
    anonymous = httpx.get(client.base_url.join("/api/v1/models"))
    assert anonymous.status_code == 401
    other = client.get("/api/v1/models", headers={"X-Tenant-ID": "someone-else"})
    assert other.status_code == 403
    assert other.json()["details"][0]["reason"] == "TENANT_MISMATCH"

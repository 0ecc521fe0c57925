"""Every error reason of the contract: explained there, and produced by a test, here where the mesh can."""

from __future__ import annotations

import ast
import asyncio
import io
import re
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.json_format import MessageToDict

from tests import documents
from tests.documents import Part
from tests.servers.model_mesh import ModelMesh
from tests.servers.transports import Transports, resumed, take, turn
from weft.v1.chat_pb2 import ConverseRequest, StreamChatRequest
from weft.v1.error_reason_pb2 import ErrorReason

ROOT = Path(__file__).parents[2]
PREFIX = "ERROR_REASON_"
PARTS = [Part("Tea", ["The tea house opens at nine."] * 3)]


@dataclass
class Room:
    """A tenant of its own on the mesh."""

    mesh: ModelMesh
    tenant: str
    wire: Transports

    async def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.wire.http.post(f"/api/v1/{path}", json=body, headers=headers)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.wire.http.get(f"/api/v1/{path}", headers=headers)

    async def ask(self, request: StreamChatRequest) -> httpx.Response:
        return await self.post("chat/stream", MessageToDict(request, preserving_proto_field_name=True))

    async def upload(self, name: str, data: bytes, dataset_id: str = "ds") -> httpx.Response:
        files = [("file", (name, data))]
        form = {"dataset_id": dataset_id}
        return await self.wire.http.post("/api/v1/knowledge/upload", data=form, files=files)


@pytest.fixture
async def room(model_mesh: ModelMesh) -> AsyncIterator[Room]:
    tenant = f"t-{uuid.uuid4().hex[:8]}"
    async with model_mesh.client(tenant) as wire:
        yield Room(model_mesh, tenant, wire)


Produce = Callable[[Room], Awaitable["httpx.Response | str"]]
"""Gives the failed answer, or the reason that stood in an event or a list of documents."""


async def no_question(room: Room) -> httpx.Response:
    return await room.post("chat/stream", {"messages": []})


async def no_token(room: Room) -> httpx.Response:
    return await room.get("models", Authorization="Bearer of.bad.news")


async def other_tenant(room: Room) -> httpx.Response:
    return await room.get("models", **{"X-Tenant-ID": "somebody-else"})


async def member_uploads(room: Room) -> httpx.Response:
    member = room.mesh.token(room.tenant, role="member")
    return await room.post("knowledge/datasets", {}, Authorization=f"Bearer {member}")


async def no_such_turn(room: Room) -> httpx.Response:
    asked = turn("Begin")
    await room.ask(asked)
    return await room.post(
        "chat/resume", {"conversation_id": asked.conversation_id, "request_id": "nobody-asked"}
    )


async def two_turns(room: Room) -> httpx.Response:
    asked = turn(f"On and on {room.tenant}", model_id="endless")
    stream = await room.wire.grpc(asked)
    await take(stream, 1)
    refused = await room.ask(turn("Meanwhile?", asked.conversation_id))
    assert refused.json()["details"][0]["metadata"] == {"request_id": asked.request_id}
    await room.wire.cancel(asked)
    return refused


async def stopped(room: Room) -> str:
    asked = turn(f"On and on {room.tenant}", model_id="endless")
    stream = await room.wire.rest(asked)
    await take(stream, 1)
    await room.wire.cancel(asked)
    return (await take(stream))[-1].reason


async def too_late(room: Room) -> str:
    asked = turn(f"On and on {room.tenant}", model_id="endless")
    await take(await room.wire.rest(asked, timeout_s=0.5))
    return (await take(await room.wire.grpc(resumed(asked, 0))))[-1].reason


async def other_question(room: Room) -> httpx.Response:
    asked = turn("Begin")
    await room.ask(asked)
    asked.messages[0].content = "Begin something else"
    return await room.ask(asked)


async def no_such_document(room: Room) -> httpx.Response:
    await room.post("knowledge/datasets", {"dataset_id": "ds"})
    return await room.wire.http.delete("/api/v1/knowledge/datasets/ds/documents/doc_none")


async def dataset_twice(room: Room) -> httpx.Response:
    await room.post("knowledge/datasets", {"dataset_id": "ds"})
    return await room.post("knowledge/datasets", {"dataset_id": "ds"})


async def empty_dataset(room: Room) -> httpx.Response:
    await room.post("knowledge/datasets", {"dataset_id": "ds"})
    return await room.post("knowledge/index", {"dataset_id": "ds"})


async def other_options(room: Room) -> httpx.Response:
    for n in range(4):  # so many that the job still runs
        await room.upload(
            f"tea-{n}.md", documents.markdown([Part("Tea", [f"Tea {n}.{i}. " * 40]) for i in range(40)])
        )
    await room.post("knowledge/index", {"dataset_id": "ds"})
    return await room.post("knowledge/index", {"dataset_id": "ds", "options": {"chunk_size": 64}})


async def graph_index(room: Room) -> httpx.Response:
    return await room.post("knowledge/index", {"dataset_id": "ds", "index_type": "graph"})


async def no_form(room: Room) -> httpx.Response:
    return await room.post("knowledge/upload", {"file": "tea.md"})


def unknown(path: str) -> Produce:
    async def produce(room: Room) -> httpx.Response:
        return await room.get(path)

    return produce


def uploaded(name: str, data: Callable[[], bytes]) -> Produce:
    """Refused when it is uploaded, or when it is indexed."""

    async def produce(room: Room) -> str:
        document = (await room.upload(name, data())).json()["documents"][0]
        if document["status"] == "refused":
            assert document["error"]["message"]
            return str(document["error"]["reason"])
        await room.post("knowledge/index", {"dataset_id": "ds"})
        async with asyncio.timeout(60):
            while (status := (await room.get("knowledge/status/ds")).json())["status"] != "failed":
                assert status["status"] != "ready", status
                await asyncio.sleep(0.1)
        (error,) = status["errors"]
        assert (error["name"], bool(error["message"])) == (name, True)
        return str(error["reason"])

    return produce


def model(model_id: str) -> Produce:
    async def produce(room: Room) -> httpx.Response:
        return await room.ask(turn("Begin", model_id=model_id))

    return produce


async def broken_model(room: Room) -> str:
    """In mid-answer: an event."""
    return (await take(await room.wire.rest(turn("Begin", model_id="cut"))))[-1].reason


async def cannot_continue(room: Room) -> httpx.Response:
    messages = [{"role": "user", "content": "Begin"}]
    return await room.post("models/generate", {"model_id": "story", "messages": messages, "prefix": "Once"})


async def too_many_turns(room: Room) -> str:
    """More than one stream may carry."""
    stream = await room.wire.converse(turn("On and on 0", model_id="endless"))
    for n in range(1, 17):
        await stream.call.write(ConverseRequest(turn=turn(f"On and on {n}", model_id="endless")))
    async with asyncio.timeout(30):
        while (event := await stream.read()) is not None:
            if event.type == "error":
                await stream.cut()
                return event.reason
    return ""


def _blank() -> bytes:
    return documents.pdf([Part("", [])], bookmarks=False)


def _cut_off() -> bytes:
    return documents.word(PARTS)[:-200]


def _archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tea.txt", "tea")
    return out.getvalue()


PRODUCED: dict[str, Produce | str] = {
    "MODEL_VERSION_REFUSED": "wire/test_models_broken_versions.py::"
    "test_a_broken_version_is_refused_and_the_old_one_serves_on",
    "NO_MODEL_REPOSITORY": "unit/test_model_versions.py::test_without_a_triton_there_is_no_repository",
    "INVALID_FIELD": no_question,
    "TOKEN_INVALID": no_token,
    "TENANT_MISMATCH": other_tenant,
    "ROLE_MISSING": member_uploads,
    "CONVERSATION_NOT_FOUND": unknown("conversations/nowhere"),
    "TURN_NOT_FOUND": no_such_turn,
    "TURN_RUNNING": two_turns,
    "REPLAY_EXPIRED": "unit/test_chat_turns.py::test_events_expire_and_messages_stay",
    "TURN_CANCELLED": stopped,
    "INTERRUPTED": "integration/test_mesh_resume.py::test_the_services_killed_in_mid_answer",
    "DEADLINE_EXCEEDED": too_late,
    "REQUEST_ID_REUSED": other_question,
    "DATASET_NOT_FOUND": unknown("knowledge/status/nowhere"),
    "DOCUMENT_NOT_FOUND": no_such_document,
    "DATASET_EXISTS": dataset_twice,
    "DATASET_EMPTY": empty_dataset,
    "INDEX_RUNNING": other_options,
    "INDEX_TYPE_UNSUPPORTED": graph_index,
    "EMBEDDER_CHANGED": "wire/test_retrieval_service.py"
    "::test_a_dataset_of_another_embedder_is_refused_and_told_how_to_mend_it",
    "UPLOAD_MALFORMED": no_form,
    "DOCUMENT_EMPTY": uploaded("tea.pdf", bytes),
    "DOCUMENT_TOO_LARGE": uploaded("tea.txt", lambda: b"tea " * 300_000),
    "FORMAT_UNSUPPORTED": uploaded("tea.zip", _archive),
    "DOCUMENT_ENCRYPTED": uploaded("tea.pdf", lambda: documents.encrypted_pdf(PARTS)),
    "DOCUMENT_NEEDS_OCR": uploaded("tea.pdf", documents.scanned_pdf),
    "DOCUMENT_BROKEN": uploaded("tea.docx", _cut_off),
    "PARSER_LIMIT": "integration/test_parsing_limits.py::test_too_little_time",
    "DOCUMENT_WITHOUT_TEXT": uploaded("tea.pdf", _blank),
    "ENCODING_UNKNOWN": uploaded("tea.txt", lambda: "茶館早上九點開門，晚上六點關門。".encode("big5")),
    "MODEL_NOT_FOUND": model("nobody"),
    "MODEL_UNAVAILABLE": model("fail"),
    "MODEL_AUTH": model("auth"),
    "MODEL_RATE_LIMITED": model("rate"),
    "MODEL_REFUSED": model("refuse"),
    "MODEL_BROKEN": broken_model,
    "MODEL_TIMEOUT": "wire/test_models_openai.py::test_silence_before_the_first_token_is_a_timeout",
    "MODEL_CANNOT_CONTINUE": cannot_continue,
    "BACKEND_UNAVAILABLE": "deploy/test_envoy_grpc.py"
    "::test_with_nobody_behind_every_transport_says_so_and_when_to_retry",
    "DRAINING": "wire/test_chat_converse.py::test_a_draining_server_says_go_away_and_finishes",
    "OVERLOADED": too_many_turns,
    "INTERNAL": "wire/test_rpc_calls.py::test_an_unknown_fault_is_internal_and_keeps_its_text",
}
"""Reason → how it comes about on the mesh, or the test elsewhere that produces it."""

# What the contract's comments promise of those that end a call.
STATUS = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 400,
    "UNIMPLEMENTED": 501,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "INTERNAL": 500,
}


def comments() -> dict[str, str]:
    """Reason → the comment above it in the contract."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in (ROOT / "proto/weft/v1/error_reason.proto").read_text().splitlines():
        line = line.strip()
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        if value := re.match(rf"{PREFIX}(\w+) = \d+;", line):
            found[value[1]] = " ".join(comment)
        comment = []
    return found


REASONS = sorted(
    name.removeprefix(PREFIX) for name in dict(ErrorReason.items()) if not name.endswith("UNSPECIFIED")
)


@pytest.mark.parametrize("reason", REASONS)
def test_it_is_documented_and_has_its_test(reason: str) -> None:
    assert len(comments()[reason]) > 20
    produced = PRODUCED[reason]
    if not isinstance(produced, str):
        return
    file, _, name = produced.partition("::")
    source = (ROOT / "tests" / file).read_text()
    tests = [each for each in ast.walk(ast.parse(source)) if getattr(each, "name", "") == name]
    assert tests, f"{produced} is gone: name another test that produces {reason}"
    assert reason in (ast.get_source_segment(source, tests[0]) or "")


@pytest.mark.parametrize("reason", [name for name in REASONS if not isinstance(PRODUCED.get(name, ""), str)])
async def test_it_is_produced(room: Room, reason: str) -> None:
    produce = PRODUCED[reason]
    assert not isinstance(produce, str)
    answer = await produce(room)
    if isinstance(answer, str):
        assert answer == reason
        return
    body = answer.json()
    info, *more = body["details"]
    assert (info["reason"], info["domain"]) == (reason, "weft"), answer.text
    assert len(body["message"]) > 20
    promised = [code for code in STATUS if re.search(rf"\b{code}\b", comments()[reason])]
    assert answer.status_code in [STATUS[code] for code in promised], answer.text
    if "RetryInfo" in comments()[reason]:
        assert any("retryDelay" in detail or "retry_delay" in detail for detail in more), answer.text
    if "BadRequest" in comments()[reason]:
        assert any("field_violations" in detail for detail in more), answer.text

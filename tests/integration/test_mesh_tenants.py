"""Another tenant's ids are ids that never were: in every method of the contract, over gRPC and REST."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from google.api import annotations_pb2, httpbody_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from tests.servers.model_mesh import ModelMesh
from tests.servers.tenant_cases import CASES, METHODS, OWN_QUESTION, OWN_TEXT, QUESTION, SECRET, TEXT, Ids
from tests.servers.transports import Transports, reason_of, take, text_of, turn
from weft.v1 import chat_pb2, retrieval_pb2

FILE = f"{SECRET}-ledger.md"


@dataclass(frozen=True)
class Answer:
    """What came over the wire. `refusal` is empty where the call, or its turn, went well."""

    code: str
    refusal: str
    raw: bytes

    def with_ids_of(self, ids: Ids, others: Ids) -> Answer:
        raw = self.raw
        for mine, theirs in zip(vars(ids).values(), vars(others).values(), strict=True):
            raw = raw.replace(mine.encode() or b"\0", theirs.encode() or b"\0")
        return Answer(self.code, self.refusal, raw)


async def over_grpc(wire: Transports, name: str, requests: Sequence[Message]) -> Answer:
    method = METHODS[name]
    call = wire.channel.stream_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
    )
    metadata = (*wire.metadata, ("x-request-id", f"rq-{name}"))
    running: Any = call(iter(requests), metadata=metadata, timeout=20)
    raw, refusal = b"", ""
    try:
        async for response in running:
            raw += response
            refusal = refusal or _in_band(name, response)
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
        return Answer(error.code().name, reason_of(error), raw + bytes(details))  # type: ignore[arg-type]
    return Answer("OK", refusal, raw)


def _in_band(name: str, response: bytes) -> str:
    """The reason in a message of a stream that goes on after it."""
    if name.endswith(".Converse"):
        return str(chat_pb2.ConverseResponse.FromString(response).event.reason)
    if name.endswith(".StreamSearch"):
        return str(retrieval_pb2.StreamSearchResponse.FromString(response).error_reason)
    return ""


async def over_rest(wire: Transports, name: str, requests: Sequence[Message]) -> Answer | None:
    """None where the contract has no route."""
    rule = METHODS[name].GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    if verb is None:
        return None
    (request,) = requests
    headers = {"X-Request-ID": f"rq-{name}-rest"}
    if isinstance(request, httpbody_pb2.HttpBody):
        headers["Content-Type"] = request.content_type
        answer = await wire.http.post(rule.post, content=request.data, headers=headers)
    else:
        fields = MessageToDict(request, preserving_proto_field_name=True)
        path = re.sub(r"\{(\w+)\}", lambda found: fields.pop(found[1]), getattr(rule, verb))
        body = {"json": fields} if rule.body else {"params": fields}
        answer = await wire.http.request(verb.upper(), path, headers=headers, **body)
    return Answer(str(answer.status_code), _reason(answer), answer.content)


def _reason(answer: httpx.Response) -> str:
    if answer.status_code == 200:
        return ""
    return str(next(detail["reason"] for detail in answer.json()["details"] if "reason" in detail))


async def furnished(wire: Transports, text: str, name: str, question: str) -> Ids:
    """A dataset that is indexed and a conversation with an answer, of the tenant of `wire`."""
    unique = uuid.uuid4().hex
    ids = {kind: f"{kind[:2]}-{unique}" for kind in ("conversation", "request", "dataset", "index_request")}
    dataset = {"dataset_id": ids["dataset"]}
    uploaded = await wire.http.post(
        "/api/v1/knowledge/upload", data=dataset, files=[("file", (name, text.encode()))]
    )
    body = {**dataset, "request_id": ids["index_request"]}
    assert (await wire.http.post("/api/v1/knowledge/index", json=body)).status_code == 200
    async with asyncio.timeout(60):
        path = f"/api/v1/knowledge/status/{ids['dataset']}"
        while (await wire.http.get(path)).json()["status"] != "ready":
            await asyncio.sleep(0.05)
    asked = turn(question, ids["conversation"], "extractive")
    asked.request_id = ids["request"]
    assert (await take(await wire.grpc(asked)))[-1].type == "done"
    return Ids(
        **ids,
        running_conversation=f"rc-{unique}",
        running_request=f"rr-{unique}",
        document=uploaded.json()["documents"][0]["document_id"],
    )


async def with_pages(wire: Transports, ids: Ids) -> Ids:
    """The same with page tokens: of a second dataset, document and conversation come first pages."""
    await wire.http.post("/api/v1/knowledge/datasets", json={"name": f"{SECRET} second"})
    files = [("file", (f"{SECRET}-2.md", f"{TEXT} again".encode()))]
    await wire.http.post("/api/v1/knowledge/upload", data={"dataset_id": ids.dataset}, files=files)
    pages = [
        (await wire.http.get(f"/api/v1/{path}", params={"page_size": 1})).json()["next_page_token"]
        for path in ("conversations", "knowledge/datasets", f"knowledge/datasets/{ids.dataset}/documents")
    ]
    return Ids(*list(vars(ids).values())[:7], *pages)


async def seen_by_owner(wire: Transports, ids: Ids) -> str:
    """All that the owner reads of what it has, its running turn apart."""
    paths = [
        f"conversations/{ids.conversation}",
        f"knowledge/status/{ids.dataset}",
        f"knowledge/datasets/{ids.dataset}/documents",
        "knowledge/datasets",
    ]
    return json.dumps([(await wire.http.get(f"/api/v1/{path}")).json() for path in paths])


def test_every_method_of_the_contract_has_its_cases() -> None:
    assert set(CASES) == set(METHODS)
    for name, cases in CASES.items():
        fields = {field.name for field in METHODS[name].input_type.fields}
        assert cases or not fields & {"conversation_id", "request_id", "dataset_id", "document_id", "job_id"}


async def test_another_tenants_ids_are_unknown(model_mesh: ModelMesh) -> None:
    unique = uuid.uuid4().hex[:8]
    async with model_mesh.client(f"a-{unique}") as theirs, model_mesh.client(f"b-{unique}") as mine:
        foreign = await furnished(theirs, TEXT, FILE, QUESTION)
        own = await furnished(mine, OWN_TEXT, "garden.md", OWN_QUESTION)
        endless = turn(f"{SECRET}?", foreign.running_conversation, "endless", resumable=True)
        endless.request_id = foreign.running_request
        running = await theirs.grpc(endless)
        assert len(await take(running, 2)) == 2
        foreign = await with_pages(theirs, foreign)
        before = await seen_by_owner(theirs, foreign)
        never = foreign.never()

        everything = [(name, case) for name, cases in CASES.items() for case in cases]
        refused = [(name, case) for name, case in everything if case.reason]
        answered = [(name, case) for name, case in everything if not case.reason]
        wrong: list[str] = []
        for name, case in refused:
            for call in (over_grpc, over_rest):
                answer = await call(mine, name, case.make(foreign, own))
                unknown = await call(mine, name, case.make(never, own))
                if answer is None or unknown is None:
                    continue
                if answer.refusal != case.reason or answer.with_ids_of(foreign, never) != unknown:
                    wrong.append(f"{name} {call.__name__}: {answer} but for an unknown id {unknown}")
                if SECRET.encode() in answer.raw:
                    wrong.append(f"{name} {call.__name__} tells: {answer}")
        for name, case in answered:
            for call in (over_grpc, over_rest):
                answer = await call(mine, name, case.make(foreign, own))
                if answer is None:
                    continue
                created_before = name.endswith("CreateDataset") and answer.refusal == "DATASET_EXISTS"
                if answer.refusal and not created_before:
                    wrong.append(f"{name} {call.__name__}: {answer} in place of something of one's own")
                if any(told in answer.raw for told in (SECRET.encode(), b"48151623")):
                    wrong.append(f"{name} {call.__name__} tells: {answer}")
        assert not wrong, "\n".join(wrong)

        assert await seen_by_owner(theirs, foreign) == before
        stored = await theirs.stored(foreign.running_conversation)
        assert stored["conversation"]["running_request_id"] == foreign.running_request
        assert await theirs.cancel(endless) == "cancelled"
        assert (await take(running))[-1].reason == "TURN_CANCELLED"


async def test_what_is_made_under_anothers_id_is_ones_own(model_mesh: ModelMesh) -> None:
    unique = uuid.uuid4().hex[:8]
    async with model_mesh.client(f"a-{unique}") as theirs, model_mesh.client(f"b-{unique}") as mine:
        foreign = await furnished(theirs, TEXT, FILE, QUESTION)
        # The very same ids, all of them, in the other tenant.
        uploaded = await mine.http.post(
            "/api/v1/knowledge/upload",
            data={"dataset_id": foreign.dataset},
            files=[("file", ("garden.md", OWN_TEXT.encode()))],
        )
        assert uploaded.json()["documents"][0]["status"] == "stored"
        asked = {"dataset_id": foreign.dataset, "request_id": foreign.index_request}
        jobs = [
            (await wire.http.post("/api/v1/knowledge/index", json=asked)).json()["job_id"]
            for wire in (theirs, mine)
        ]
        assert jobs[0] != jobs[1]
        async with asyncio.timeout(60):
            path = f"/api/v1/knowledge/status/{foreign.dataset}"
            while (status := (await mine.http.get(path)).json())["status"] != "ready":
                await asyncio.sleep(0.05)
        assert status["documents"] == 1
        request = turn(QUESTION, foreign.conversation, "extractive")
        request.request_id = foreign.request
        events = await take(await mine.rest(request))
        assert "48151623" not in text_of(events)
        assert SECRET not in str(events[-2].references)
        found = await mine.http.post("/api/v1/search", json={"query": f"{SECRET} 48151623", "top_k": 100})
        assert {result["name"] for result in found.json().get("results", [])} <= {"garden.md"}

        # What one of them deletes stays with the other.
        assert (await mine.http.delete(f"/api/v1/conversations/{foreign.conversation}")).status_code == 200
        deleted = await mine.http.delete(f"/api/v1/knowledge/datasets/{foreign.dataset}")
        assert deleted.status_code == 200
        again = turn(QUESTION, foreign.conversation, "extractive")
        events = await take(await theirs.rest(again))
        assert "48151623" in text_of(events)
        assert len((await theirs.stored(foreign.conversation))["messages"]) == 4


async def test_a_token_of_another_tenant_is_not_mixed_with_a_header(model_mesh: ModelMesh) -> None:
    async with model_mesh.client("a") as mine:
        refused = await mine.http.get("/api/v1/conversations", headers={"X-Tenant-ID": "b"})
        assert (refused.status_code, _reason(refused)) == (403, "TENANT_MISMATCH")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await mine.chat.ListConversations(
                chat_pb2.ListConversationsRequest(), metadata=(*mine.metadata, ("x-tenant-id", "b"))
            )
        assert reason_of(raised.value) == "TENANT_MISMATCH"

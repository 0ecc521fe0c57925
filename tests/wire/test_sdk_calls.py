"""The SDK's other calls: knowledge, conversations, search, models; and which are tried again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from weft import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    UploadProgress,
    Weft,
    WeftError,
)
from weft.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    common_pb2,
    knowledge_pb2,
    knowledge_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    retrieval_pb2,
    retrieval_pb2_grpc,
)


async def abort(context: Any, code: grpc.StatusCode, reason: str, *details: Any) -> None:
    status = status_pb2.Status(code=code.value[0], message="No.")
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="weft"), *details):
        status.details.add().Pack(detail)
    await context.abort(code, "No.", (("grpc-status-details-bin", status.SerializeToString()),))


class Server(
    knowledge_pb2_grpc.KnowledgeServiceServicer,
    chat_pb2_grpc.ChatServiceServicer,
    retrieval_pb2_grpc.RetrievalServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.request_ids: set[str] = set()
        self.failures: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.pieces: list[int] = []
        self.states = ["pending", "indexing", "ready"]
        self.datasets = {"ds_1"}

    async def _begin(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.request_ids.add(dict(context.invocation_metadata())["x-request-id"])
        if self.failures:
            await self.failures.pop(0)(context)

    async def CreateDataset(self, request: Any, context: Any) -> knowledge_pb2.Dataset:
        await self._begin("CreateDataset", context)
        assert request.request_id
        return knowledge_pb2.Dataset(dataset_id=request.dataset_id, name=request.name)

    async def ListDatasets(self, request: Any, context: Any) -> knowledge_pb2.ListDatasetsResponse:
        await self._begin("ListDatasets", context)
        first = int(request.page_token or 0)
        names = [knowledge_pb2.Dataset(dataset_id=f"ds_{i}") for i in range(first, min(first + 2, 5))]
        return knowledge_pb2.ListDatasetsResponse(
            datasets=names, next_page_token=str(first + 2) if first + 2 < 5 else ""
        )

    async def DeleteDataset(self, request: Any, context: Any) -> knowledge_pb2.DeleteDatasetResponse:
        self.calls.append("DeleteDataset")
        if request.dataset_id not in self.datasets:
            await abort(context, grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
        self.datasets.remove(request.dataset_id)
        if self.failures:
            await self.failures.pop(0)(context)
        return knowledge_pb2.DeleteDatasetResponse()

    async def Upload(
        self, requests: AsyncIterator[knowledge_pb2.UploadRequest], context: Any
    ) -> knowledge_pb2.UploadResponse:
        await self._begin("Upload", context)
        documents: list[knowledge_pb2.UploadedDocument] = []
        async for request in requests:
            if request.WhichOneof("kind") == "header":
                documents.append(knowledge_pb2.UploadedDocument(name=request.header.name, status="stored"))
                self.files[request.header.name] = b""
            else:
                self.pieces.append(len(request.data))
                self.files[documents[-1].name] += request.data
            if documents[-1].name == "stop.txt":
                await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        return knowledge_pb2.UploadResponse(dataset_id="ds_1", documents=documents)

    async def BuildIndex(self, request: Any, context: Any) -> knowledge_pb2.BuildIndexResponse:
        await self._begin("BuildIndex", context)
        assert request.options.chunk_size == 128
        assert not request.options.HasField("overlap")
        return knowledge_pb2.BuildIndexResponse(job_id="job_1")

    async def GetStatus(self, request: Any, context: Any) -> knowledge_pb2.GetStatusResponse:
        await self._begin("GetStatus", context)
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        errors = [knowledge_pb2.IndexError(name="a.pdf", reason="DOCUMENT_EMPTY", message="Empty.")]
        return knowledge_pb2.GetStatusResponse(status=state, errors=errors if state == "failed" else [])

    async def ListModels(self, request: Any, context: Any) -> models_pb2.ListModelsResponse:
        await self._begin("ListModels", context)
        return models_pb2.ListModelsResponse(models=[models_pb2.Model(model_id="extractive")])

    async def Search(self, request: Any, context: Any) -> retrieval_pb2.SearchResponse:
        await self._begin("Search", context)
        assert request.filters.date_range.start == "2024-01-31"
        return found(request.query)

    async def StreamSearch(
        self, requests: AsyncIterator[retrieval_pb2.StreamSearchRequest], context: Any
    ) -> AsyncIterator[retrieval_pb2.StreamSearchResponse]:
        async for request in requests:
            if request.search.query == "overtaken":
                continue
            if request.search.query == "bad":
                yield retrieval_pb2.StreamSearchResponse(
                    query_id=request.query_id, error_reason="INVALID_FIELD", error_message="Too long."
                )
                continue
            yield retrieval_pb2.StreamSearchResponse(
                query_id=request.query_id, response=found(request.search.query)
            )

    async def GetConversation(self, request: Any, context: Any) -> chat_pb2.GetConversationResponse:
        await self._begin("GetConversation", context)
        first = int(request.page_token or 0)
        return chat_pb2.GetConversationResponse(
            conversation=chat_pb2.Conversation(conversation_id=request.conversation_id, title="t"),
            messages=[chat_pb2.StoredMessage(content=str(first))],
            next_page_token=str(first + 1) if first < 2 else "",
        )

    async def ListConversations(self, request: Any, context: Any) -> chat_pb2.ListConversationsResponse:
        return chat_pb2.ListConversationsResponse(
            conversations=[chat_pb2.Conversation(conversation_id="conv_1")]
        )

    async def RateAnswer(self, request: Any, context: Any) -> chat_pb2.RateAnswerResponse:
        await self._begin(f"RateAnswer {request.rating} {request.comment}", context)
        return chat_pb2.RateAnswerResponse()


def found(query: str) -> retrieval_pb2.SearchResponse:
    return retrieval_pb2.SearchResponse(results=[common_pb2.Reference(content=query)])


async def unavailable(context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "down")


async def overloaded(context: Any) -> None:
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(300)
    await abort(
        context,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED",
        error_details_pb2.RetryInfo(retry_delay=delay),
    )


async def refused(context: Any) -> None:
    field = error_details_pb2.BadRequest.FieldViolation(field="name", description="too long")
    await abort(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        error_details_pb2.BadRequest(field_violations=[field]),
    )


@pytest.fixture
async def fake() -> Server:
    return Server()


@pytest.fixture
async def weft(fake: Server) -> AsyncIterator[Weft]:
    server = grpc.aio.server()
    knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(fake, server)
    chat_pb2_grpc.add_ChatServiceServicer_to_server(fake, server)
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(fake, server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Weft(f"127.0.0.1:{port}", token="t", timeout_s=5) as weft:
        yield weft
    await server.stop(None)


async def test_what_may_be_repeated_is_tried_again_under_one_request_id(weft: Weft, fake: Server) -> None:
    fake.failures = [unavailable, unavailable]
    assert (await weft.knowledge.create_dataset("ds_9", "Nine")).name == "Nine"
    assert fake.calls == ["CreateDataset"] * 3
    assert len(fake.request_ids) == 1


async def test_the_servers_pause_is_kept(weft: Weft, fake: Server) -> None:
    fake.failures = [overloaded]
    started = time.monotonic()
    assert [model.model_id async for model in weft.models()] == ["extractive"]
    assert time.monotonic() - started >= 0.3


async def test_attempts_end(weft: Weft, fake: Server) -> None:
    fake.failures = [overloaded] * 9
    with pytest.raises(ResourceExhausted) as exhausted:
        await weft.knowledge.create_dataset()
    assert exhausted.value.retry_after_s == 0.3
    assert len(fake.calls) == 4


async def test_a_refusal_is_not_repeated_and_names_its_fields(weft: Weft, fake: Server) -> None:
    fake.failures = [refused]
    with pytest.raises(InvalidArgument) as invalid:
        await weft.knowledge.create_dataset(name="x" * 999)
    assert invalid.value.fields == {"name": "too long"}
    assert len(fake.calls) == 1


async def test_a_deletion_whose_answer_was_lost_is_done(weft: Weft, fake: Server) -> None:
    fake.failures = [unavailable]
    await weft.knowledge.delete_dataset("ds_1")
    assert len(fake.calls) == 2
    with pytest.raises(NotFound):
        await weft.knowledge.delete_dataset("ds_1")


async def test_lists_go_over_every_page(weft: Weft) -> None:
    assert [dataset.dataset_id async for dataset in weft.knowledge.datasets()] == [
        f"ds_{i}" for i in range(5)
    ]
    assert [message.content async for message in weft.conversations.messages("conv_1")] == ["0", "1", "2"]
    assert [item.conversation_id async for item in weft.conversations.list()] == ["conv_1"]
    assert (await weft.conversations.get("conv_1")).title == "t"


async def test_an_answer_is_rated(weft: Weft, fake: Server) -> None:
    await weft.conversations.rate("conv_1", "r", "down", "wrong page")
    assert fake.calls == ["RateAnswer down wrong page"]


async def test_files_are_uploaded_in_pieces_with_progress(weft: Weft, fake: Server, tmp_path: Path) -> None:
    big = tmp_path / "手册.pdf"
    big.write_bytes(bytes(range(256)) * 10_000)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b""
        yield b"two"

    steps: list[UploadProgress] = []
    answer = await weft.knowledge.upload(
        big, ("a.txt", b"bytes"), ("b.txt", pieces()), ("empty.txt", b""), progress=steps.append
    )
    assert [document.name for document in answer.documents] == ["手册.pdf", "a.txt", "b.txt", "empty.txt"]
    assert fake.files == {
        "手册.pdf": big.read_bytes(),
        "a.txt": b"bytes",
        "b.txt": b"one two",
        "empty.txt": b"",
    }
    assert max(fake.pieces) == 1 << 20
    assert min(fake.pieces) > 0
    assert UploadProgress("手册.pdf", 2_560_000, 2_560_000) in steps
    assert UploadProgress("b.txt", 7, None) in steps


async def test_an_upload_that_the_server_ends_tells_why(weft: Weft, fake: Server) -> None:
    with pytest.raises(ResourceExhausted) as exhausted:
        await weft.knowledge.upload(("stop.txt", b"x" * (20 << 20)))
    assert exhausted.value.reason == "OVERLOADED"
    assert fake.calls == ["Upload"]


async def test_a_file_that_is_missing_ends_the_upload(weft: Weft, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await weft.knowledge.upload(("a.txt", b"x"), tmp_path / "none.pdf")


async def test_an_index_is_waited_for(weft: Weft, fake: Server) -> None:
    assert await weft.knowledge.index("ds_1", chunk_size=128) == "job_1"
    seen: list[str] = []
    status = await weft.knowledge.wait_ready("ds_1", progress=lambda status: seen.append(status.status))
    assert (status.status, seen) == ("ready", ["pending", "indexing", "ready"])
    fake.states = ["failed"]
    with pytest.raises(FailedPrecondition, match=r"a\.pdf: Empty\.") as failed:
        await weft.knowledge.wait_ready("ds_1")
    assert failed.value.reason == "DOCUMENT_EMPTY"
    fake.states = ["indexing"]
    with pytest.raises(DeadlineExceeded):
        await weft.knowledge.wait_ready("ds_1", timeout_s=0.1)


async def test_search_while_typing(weft: Weft) -> None:
    assert (await weft.search("q", uploaded_from="2024-01-31")).results[0].content == "q"

    async def typed(*queries: str) -> AsyncIterator[str]:
        for query in queries:
            yield query
            await asyncio.sleep(0.01)

    answers = [answer async for answer in weft.search_stream(typed("a", "overtaken", "ab"))]
    assert [(query, answer.results[0].content) for query, answer in answers] == [("a", "a"), ("ab", "ab")]
    with pytest.raises(WeftError, match=r"Too long\."):
        [answer async for answer in weft.search_stream(typed("a", "bad", "c"))]

    async def broken() -> AsyncIterator[str]:
        yield "a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [answer async for answer in weft.search_stream(broken())]


PROGRAM = """
import asyncio

from weft import Delta, Done, References, Weft


async def main() -> None:
    async with Weft("127.0.0.1:8080", token="t") as weft:
        async for event in weft.chat("conv_1", "What is RAG?"):
            match event:
                case Delta(text):
                    print(text, end="", flush=True)
                case References(items):
                    print([(item.name, item.page) for item in items])
                case Done(usage):
                    print(usage.total_tokens)


asyncio.run(main())
"""


def test_a_users_program_type_checks(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout

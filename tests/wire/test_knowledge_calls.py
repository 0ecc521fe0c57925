"""KnowledgeService as its callers see it: uploads of both kinds, refusals, cuts, other tenants."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.servers.knowledge import Knowledge, bearer, opened, served, serving_process
from weft.v1 import knowledge_pb2 as pb
from weft.v1 import knowledge_pb2_grpc
from weftd.knowledge.intake import UploadLimits

MIB = 1 << 20


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Any]:
    limits = UploadLimits(file_bytes=2 * MIB, files=4, uploads=3)
    async with opened(tmp_path, limits) as knowledge, connected(knowledge) as stub:
        yield SimpleNamespace(stub=stub, knowledge=knowledge, directory=tmp_path)


@asynccontextmanager
async def connected(knowledge: Knowledge) -> AsyncIterator[Any]:
    async with served(knowledge) as address, grpc.aio.insecure_channel(address) as channel:
        yield knowledge_pb2_grpc.KnowledgeServiceStub(channel)


def reason(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info.reason
    raise AssertionError("no ErrorInfo")


def messages(*files: tuple[str, bytes], dataset_id: str = "") -> Iterator[pb.UploadRequest]:
    for name, content in files:
        yield pb.UploadRequest(header=pb.UploadHeader(dataset_id=dataset_id, name=name))
        for start in range(0, len(content), MIB):
            yield pb.UploadRequest(data=content[start : start + MIB])


def form(*files: tuple[str, bytes], dataset_id: str = "", piece: int = 16_384) -> Iterator[HttpBody]:
    parts = [
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n' % name.encode()
        + content
        for name, content in files
    ]
    if dataset_id:
        parts.append(
            b'--xx\r\nContent-Disposition: form-data; name="dataset_id"\r\n\r\n' + dataset_id.encode()
        )
    body = b"\r\n".join([*parts, b"--xx--\r\n"])
    for start in range(0, len(body), piece):
        kind = "multipart/form-data; boundary=xx" if start == 0 else ""
        yield HttpBody(content_type=kind, data=body[start : start + piece])


async def upload(stub: Any, kind: str, *files: tuple[str, bytes], **more: Any) -> pb.UploadResponse:
    tenant = more.pop("tenant", "acme")
    call, made = (stub.Upload, messages) if kind == "stream" else (stub.UploadForm, form)
    return await call(made(*files, **more), metadata=bearer(tenant))


def left_over(directory: Path) -> list[str]:
    return [path.name for path in (directory / "blobs" / "incoming").iterdir()]


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0.01)


both = pytest.mark.parametrize("kind", ["stream", "form"])


@both
async def test_several_files_and_what_becomes_of_each(service: Any, kind: str) -> None:
    big = b"x" * (2 * MIB + 1)
    response = await upload(
        service.stub,
        kind,
        ("一.txt", b"alpha"),
        ("empty.txt", b""),
        ("big.bin", big),
        ("again.txt", b"alpha"),
        dataset_id="ds_1",
    )
    assert response.dataset_id == "ds_1"
    assert [(d.name, d.status, d.bytes, d.error.reason) for d in response.documents] == [
        ("一.txt", "stored", 5, ""),
        ("empty.txt", "refused", 0, "DOCUMENT_EMPTY"),
        ("big.bin", "refused", len(big), "DOCUMENT_TOO_LARGE"),
        ("again.txt", "duplicate", 5, ""),
    ]
    first, _, _, again = response.documents
    assert first.document_id == again.document_id
    assert not response.documents[1].document_id
    repeated = await upload(service.stub, kind, ("third name.txt", b"alpha"), dataset_id="ds_1")
    assert (repeated.documents[0].status, repeated.documents[0].document_id) == (
        "duplicate",
        first.document_id,
    )
    listed = await service.stub.ListDocuments(pb.ListDocumentsRequest(dataset_id="ds_1"), metadata=bearer())
    assert [(d.name, d.status, d.bytes) for d in listed.documents] == [("一.txt", "stored", 5)]
    assert left_over(service.directory) == []


@both
async def test_without_a_dataset_one_is_made(service: Any, kind: str) -> None:
    response = await upload(service.stub, kind, ("a.txt", b"a"))
    status = await service.stub.GetStatus(
        pb.GetStatusRequest(dataset_id=response.dataset_id), metadata=bearer()
    )
    assert (status.status, status.documents, status.progress, status.HasField("chunks")) == (
        "pending",
        1,
        0,
        True,
    )


@both
async def test_the_same_bytes_of_two_tenants_are_apart(service: Any, kind: str) -> None:
    mine = await upload(service.stub, kind, ("a.txt", b"same"), dataset_id="ds")
    theirs = await upload(service.stub, kind, ("a.txt", b"same"), dataset_id="ds", tenant="other")
    assert theirs.documents[0].status == "stored"
    assert theirs.documents[0].document_id != mine.documents[0].document_id


@both
@pytest.mark.parametrize(
    ("files", "dataset_id", "expected"),
    [
        ([("a.txt", b"a")], "a b", "INVALID_FIELD"),
        ([(f"{n}.txt", b"a") for n in range(5)], "ds", "INVALID_FIELD"),
        ([], "", "UPLOAD_MALFORMED"),
    ],
    ids=["dataset-id", "too-many", "none"],
)
async def test_an_upload_that_cannot_be_taken(
    service: Any, kind: str, files: list[tuple[str, bytes]], dataset_id: str, expected: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(service.stub, kind, *files, dataset_id=dataset_id)
    assert reason(caught.value) == expected
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert left_over(service.directory) == []


@pytest.mark.parametrize(
    "requests",
    [
        [pb.UploadRequest(data=b"x")],
        [pb.UploadRequest(header=pb.UploadHeader(name="a")), pb.UploadRequest(data=b"x" * (MIB + 1))],
        [
            pb.UploadRequest(header=pb.UploadHeader(name="a", dataset_id="one")),
            pb.UploadRequest(header=pb.UploadHeader(name="b", dataset_id="two")),
        ],
    ],
    ids=["no-header", "long-piece", "two-datasets"],
)
async def test_messages_out_of_order(service: Any, requests: list[pb.UploadRequest]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.Upload(iter(requests), metadata=bearer())
    assert reason(caught.value) == "INVALID_FIELD"
    assert left_over(service.directory) == []


@both
@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_an_upload_that_is_cut_off_leaves_nothing(service: Any, kind: str, end: str) -> None:
    randomly = random.Random(3)
    for _ in range(10):
        reached = asyncio.Event()

        async def slowly(reached: asyncio.Event = reached) -> AsyncIterator[Any]:
            made = list(
                messages(("a.txt", b"a" * MIB), ("b.txt", b"b" * MIB), dataset_id="cut")
                if kind == "stream"
                else form(("a.txt", b"a" * MIB), ("b.txt", b"b" * MIB), dataset_id="cut", piece=MIB // 2)
            )
            for message in made[: randomly.randint(1, len(made) - 1)]:
                yield message
            reached.set()
            await asyncio.Event().wait()

        method = service.stub.Upload if kind == "stream" else service.stub.UploadForm
        call = method(slowly(), metadata=bearer(), timeout=0.1 if end == "deadline" else None)
        if end == "cancel":
            await reached.wait()
            call.cancel()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await call
    # Uploads that were cut off hold no place: soon as many as are allowed at once go through.
    while True:
        calls = (upload(service.stub, kind, (f"{n}", b"z%d" % n), dataset_id="ds") for n in range(3))
        done = await asyncio.gather(*calls, return_exceptions=True)
        failed = [each for each in done if isinstance(each, BaseException)]
        if not failed:
            break
        assert {reason(error) for error in failed} == {"OVERLOADED"}  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.stub.GetStatus(pb.GetStatusRequest(dataset_id="cut"), metadata=bearer())
    assert reason(caught.value) == "DATASET_NOT_FOUND"
    assert left_over(service.directory) == []
    kept = [path for path in (service.directory / "blobs" / "kept").rglob("*") if path.is_file()]
    assert len(kept) == 3


async def test_too_many_uploads_at_once(service: Any) -> None:
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[pb.UploadRequest]:
        yield pb.UploadRequest(header=pb.UploadHeader(name="a", dataset_id="ds"))
        await go_on.wait()
        yield pb.UploadRequest(data=b"a")

    calls = [service.stub.Upload(waiting(), metadata=bearer()) for _ in range(3)]
    await until(lambda: len(left_over(service.directory)) == 3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upload(service.stub, "form", ("b", b"b"))
    assert reason(caught.value) == "OVERLOADED"
    go_on.set()
    statuses = [(await call).documents[0].status for call in calls]
    assert sorted(statuses) == ["duplicate", "duplicate", "stored"]


async def test_what_a_killed_server_was_receiving_is_gone(tmp_path: Path) -> None:
    with serving_process(tmp_path) as (_, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
            await upload(stub, "stream", ("kept.txt", b"kept"), dataset_id="ds")
            sent = asyncio.Event()

            async def half() -> AsyncIterator[pb.UploadRequest]:
                yield pb.UploadRequest(header=pb.UploadHeader(name="half.txt", dataset_id="ds"))
                yield pb.UploadRequest(data=b"half")
                sent.set()
                await asyncio.Event().wait()

            call = stub.Upload(half(), metadata=bearer())
            await sent.wait()
            await until(lambda: bool(left_over(tmp_path)))
            call.cancel()
    async with opened(tmp_path) as knowledge:
        await knowledge.uploads.recover()
        assert left_over(tmp_path) == []
        listed = await knowledge.catalogue.list_documents("acme", pb.ListDocumentsRequest(dataset_id="ds"))
        assert [document.name for document in listed.documents] == ["kept.txt"]


@both
async def test_a_large_upload_is_not_held_in_memory(tmp_path: Path, kind: str) -> None:
    content = random.Random(1).randbytes(MIB)
    with serving_process(tmp_path) as (pid, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
            await upload(stub, kind, ("warm.bin", content))
            server = psutil.Process(pid)
            idle = server.memory_info().rss
            most = 0

            async def large() -> AsyncIterator[Any]:
                nonlocal most
                if kind == "stream":
                    yield pb.UploadRequest(header=pb.UploadHeader(name="large.bin"))
                else:
                    head = (
                        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
                    )
                    yield HttpBody(content_type="multipart/form-data; boundary=xx", data=head)
                for _ in range(60):
                    yield pb.UploadRequest(data=content) if kind == "stream" else HttpBody(data=content)
                    most = max(most, server.memory_info().rss)
                if kind == "form":
                    yield HttpBody(data=b"\r\n--xx--\r\n")

            method = stub.Upload if kind == "stream" else stub.UploadForm
            response = await method(large(), metadata=bearer())
    assert (response.documents[0].status, response.documents[0].bytes) == ("stored", 60 * MIB)
    assert (max(most, idle) - idle) / MIB <= 20


async def test_roles_and_other_tenants(service: Any) -> None:
    stub = service.stub
    made = await upload(stub, "stream", ("a.txt", b"a"), dataset_id="ds")
    document_id = made.documents[0].document_id
    await stub.BuildIndex(pb.BuildIndexRequest(dataset_id="ds", request_id="r"), metadata=bearer())
    reads = [
        (stub.GetStatus, pb.GetStatusRequest(dataset_id="ds")),
        (stub.ListDocuments, pb.ListDocumentsRequest(dataset_id="ds")),
    ]
    changes = [
        (stub.BuildIndex, pb.BuildIndexRequest(dataset_id="ds", request_id="r")),
        (stub.DeleteDocument, pb.DeleteDocumentRequest(dataset_id="ds", document_id=document_id)),
        (stub.DeleteDataset, pb.DeleteDatasetRequest(dataset_id="ds")),
    ]
    for method, request in reads + changes:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, metadata=bearer("other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "a.txt" not in str(caught.value)
    for method, request in changes:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, metadata=bearer(role="member"))
        assert reason(caught.value) == "ROLE_MISSING"
    for method, request in reads:
        await method(request, metadata=bearer(role="member"))
    assert (await stub.ListDatasets(pb.ListDatasetsRequest(), metadata=bearer("other"))).datasets == []
    await stub.DeleteDocument(
        pb.DeleteDocumentRequest(dataset_id="ds", document_id=document_id), metadata=bearer()
    )
    await stub.DeleteDataset(pb.DeleteDatasetRequest(dataset_id="ds"), metadata=bearer())

"""Datasets, documents and index jobs in the records, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers.postgres import Postgres
from weft.v1 import knowledge_pb2 as pb
from weftd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, WeftError, reason_name
from weftd.knowledge.catalogue import Catalogue
from weftd.knowledge.passage_writer import PassageWriter
from weftd.stores.records import datasets, documents, index_jobs
from weftd.stores.records.documents import StoredFile
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


@pytest.fixture(params=["sqlite", "postgresql"])
async def records(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Records]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'records.db'}"
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.database()
    await asyncio.to_thread(migrate, url)
    made = Records(url)
    yield made
    await made.close()


@pytest.fixture
def catalogue(records: Records) -> Catalogue:
    return Catalogue(records, PassageWriter([]))


def file(content: str, name: str = "") -> StoredFile:
    return StoredFile(name or f"{content}.txt", f"sha-{content}", len(content), f"blob-{content}-{name}")


async def add(
    records: Records, *contents: str, tenant: str = "acme", dataset_id: str = "ds", at: int = 1
) -> list[str]:
    files = [StoredFile(f"{c}.txt", f"sha-{c}", len(c), f"{tenant}-{dataset_id}-{c}-{at}") for c in contents]
    added = await records.write(lambda c: documents.add(c, tenant, dataset_id, files, at), durable=True)
    return [document_id for document_id, _ in added]


async def build(catalogue: Catalogue, tenant: str = "acme", **fields: object) -> str:
    request = pb.BuildIndexRequest(dataset_id="ds", **fields)  # type: ignore[arg-type]
    return (await catalogue.build_index(tenant, request)).job_id


async def index(records: Records, job_id: str, chunks: int = 3, model_id: str = "m") -> list[str]:
    """What a job does to the records, all documents being fine."""
    done = []
    while todo := await records.write(lambda c: index_jobs.plan(c, job_id, model_id, f"{model_id}/f")):
        for document_id, _ in todo:
            await records.write(
                lambda c, d=document_id: documents.parsed(c, "acme", d, f"{model_id}/f", chunks)
            )
            await records.write(lambda c, d=document_id: documents.stored_passages(c, "acme", d, chunks))
            done.append(document_id)
    return done


async def status(catalogue: Catalogue, tenant: str = "acme") -> pb.GetStatusResponse:
    return await catalogue.status(tenant, pb.GetStatusRequest(dataset_id="ds"))


def reason(error: pytest.ExceptionInfo[WeftError]) -> str:
    return reason_name(error.value.reason)


async def test_the_same_bytes_are_one_document(records: Records) -> None:
    files = [file("a"), file("b"), file("a", "other name")]
    added = await records.write(lambda c: documents.add(c, "acme", "ds", files, 1))
    assert [is_new for _, is_new in added] == [True, True, False]
    assert added[0][0] == added[2][0]
    elsewhere = await add(records, "a", dataset_id="ds2") + await add(records, "a", tenant="other")
    assert len({added[0][0], *elsewhere}) == 3


async def test_uploads_at_once_make_one_dataset_and_one_document(records: Records) -> None:
    added = await asyncio.gather(*(add(records, "a", "b", at=n) for n in range(10)))
    assert len({tuple(ids) for ids in added}) == 1


async def test_creating(catalogue: Catalogue) -> None:
    async def create(**fields: str) -> pb.Dataset:
        return await catalogue.create("acme", pb.CreateDatasetRequest(**fields))

    made = await create(dataset_id="ds", name="计划", request_id="r1")
    assert (made.dataset_id, made.name, made.status, made.documents) == ("ds", "计划", "pending", 0)
    assert await create(dataset_id="ds", name="计划", request_id="r1") == made
    with pytest.raises(AlreadyExists) as caught:
        await create(dataset_id="ds")
    assert reason(caught) == "DATASET_EXISTS"
    with pytest.raises(InvalidArgument) as reused:
        await create(dataset_id="ds9", request_id="r1")
    assert reason(reused) == "REQUEST_ID_REUSED"
    named = await asyncio.gather(*(create(request_id="r2") for _ in range(5)))
    assert len({each.dataset_id for each in named}) == 1
    assert named[0].name == named[0].dataset_id
    assert (await create()).dataset_id != (await create()).dataset_id
    for bad in ({"dataset_id": "a b"}, {"name": "x" * 201}, {"name": "a\nb"}, {"request_id": "x" * 129}):
        with pytest.raises(InvalidArgument):
            await create(**bad)
    assert (await catalogue.create("other", pb.CreateDatasetRequest(dataset_id="ds"))).dataset_id == "ds"


async def test_pages_hold_everything_once(records: Records, catalogue: Catalogue) -> None:
    ids = await add(records, *(f"f{n}" for n in range(7)), at=5)
    ids += await add(records, "late", at=6)
    seen: list[str] = []
    request = pb.ListDocumentsRequest(dataset_id="ds", page_size=3)
    while True:
        page = await catalogue.list_documents("acme", request)
        seen += [document.document_id for document in page.documents]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ids
    for n in range(5):
        await add(records, "x", dataset_id=f"d{n}", at=100 + n)
    listed: list[str] = []
    datasets_request = pb.ListDatasetsRequest(page_size=2)
    while True:
        found = await catalogue.list_datasets("acme", datasets_request)
        listed += [dataset.dataset_id for dataset in found.datasets]
        if not found.next_page_token:
            break
        datasets_request.page_token = found.next_page_token
    assert listed == ["d4", "d3", "d2", "d1", "d0", "ds"]


async def test_status_follows_the_job(records: Records, catalogue: Catalogue) -> None:
    (first, second) = await add(records, "a", "b")
    assert (await status(catalogue)).status == "pending"
    job_id = await build(catalogue)
    assert (await status(catalogue)).status == "pending"
    await records.write(lambda c: index_jobs.plan(c, job_id, "m", "m/f"))
    assert (await status(catalogue)).status == "indexing"
    await records.write(lambda c: documents.parsed(c, "acme", first, "m/f", 4))
    await records.write(lambda c: documents.stored_passages(c, "acme", first, 2))
    half = await status(catalogue)
    assert (half.status, half.progress, half.documents, half.chunks) == ("indexing", 0.25, 2, 2)
    await records.write(lambda c: documents.stored_passages(c, "acme", first, 4))
    await records.write(lambda c: documents.refused(c, "acme", second, "m/f", "DOCUMENT_BROKEN", "Mend it."))
    assert await records.write(lambda c: index_jobs.plan(c, job_id, "m", "m/f")) == []
    whole = await status(catalogue)
    assert (whole.status, whole.progress, whole.chunks) == ("ready", 1.0, 4)
    (error,) = whole.errors
    assert (error.document_id, error.name, error.reason) == (second, "b.txt", "DOCUMENT_BROKEN")
    listed = await catalogue.list_documents("acme", pb.ListDocumentsRequest(dataset_id="ds"))
    assert [document.status for document in listed.documents] == ["indexed", "refused"]
    assert listed.documents[1].error.message == "Mend it."


async def test_a_dataset_of_refused_documents_failed(records: Records, catalogue: Catalogue) -> None:
    (only,) = await add(records, "a")
    job_id = await build(catalogue)
    await records.write(lambda c: index_jobs.plan(c, job_id, "m", "f"))
    await records.write(lambda c: documents.refused(c, "acme", only, "f", "DOCUMENT_BROKEN", "Mend it."))
    await records.write(lambda c: index_jobs.plan(c, job_id, "m", "f"))
    assert (await status(catalogue)).status == "failed"


async def test_a_job_that_cannot_go_on_says_why(records: Records, catalogue: Catalogue) -> None:
    await add(records, "a")
    job_id = await build(catalogue)
    await records.write(lambda c: index_jobs.fail(c, job_id, "BACKEND_UNAVAILABLE", "Look at Milvus."))
    failed = await status(catalogue)
    assert (failed.status, failed.errors[0].reason) == ("failed", "BACKEND_UNAVAILABLE")
    assert await build(catalogue) != job_id
    assert (await status(catalogue)).status == "pending"


async def test_one_job_at_a_time(records: Records, catalogue: Catalogue) -> None:
    with pytest.raises(NotFound):
        await build(catalogue)
    await catalogue.create("acme", pb.CreateDatasetRequest(dataset_id="ds"))
    with pytest.raises(FailedPrecondition) as empty:
        await build(catalogue)
    assert reason(empty) == "DATASET_EMPTY"
    await add(records, "a")
    jobs = await asyncio.gather(*(build(catalogue) for _ in range(5)))
    assert len(set(jobs)) == 1
    assert await build(catalogue, options=pb.IndexOptions(chunk_size=256, overlap=32)) == jobs[0]
    with pytest.raises(FailedPrecondition) as running:
        await build(catalogue, options=pb.IndexOptions(chunk_size=128))
    assert (reason(running), running.value.metadata["job_id"]) == ("INDEX_RUNNING", jobs[0])
    assert (await records.read(index_jobs.open_work))[0] == [jobs[0]]
    await index(records, jobs[0])
    assert (await records.read(index_jobs.open_work))[0] == []


async def test_the_same_request_id_gets_the_same_job(records: Records, catalogue: Catalogue) -> None:
    await add(records, "a")
    job_id = await build(catalogue, request_id="r")
    await index(records, job_id)
    assert await build(catalogue, request_id="r") == job_id
    with pytest.raises(InvalidArgument) as reused:
        await build(catalogue, request_id="r", options=pb.IndexOptions(chunk_size=64))
    assert reason(reused) == "REQUEST_ID_REUSED"
    assert await build(catalogue, request_id="r2") != job_id


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 31}, {"chunk_size": 2049}, {"chunk_size": 0}, {"chunk_size": 64, "overlap": 33}],
)
async def test_options_out_of_range(catalogue: Catalogue, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        await build(catalogue, options=pb.IndexOptions(**options))
    with pytest.raises(WeftError) as caught:
        await build(catalogue, index_type="graph")
    assert reason(caught) == "INDEX_TYPE_UNSUPPORTED"
    with pytest.raises(InvalidArgument):
        await build(catalogue, index_type="tree")


async def test_only_what_changed_is_indexed_again(records: Records, catalogue: Catalogue) -> None:
    (first,) = await add(records, "a")
    assert await index(records, await build(catalogue)) == [first]
    assert await index(records, await build(catalogue)) == []
    (second,) = await add(records, "b", at=2)
    assert (await status(catalogue)).status == "pending"
    assert await index(records, await build(catalogue)) == [second]
    assert await index(records, await build(catalogue), model_id="m2") == [first, second]
    live = await records.read(lambda c: datasets.resolve(c, "acme", (), ()))
    assert live == [datasets.LiveDataset("ds", "m2")]


async def test_an_upload_while_the_job_runs_is_in_it(records: Records, catalogue: Catalogue) -> None:
    await add(records, "a")
    job_id = await build(catalogue)
    await records.write(lambda c: index_jobs.plan(c, job_id, "m", "m/f"))
    await add(records, "b", at=2)
    assert await build(catalogue) == job_id
    assert len(await index(records, job_id)) == 2


async def test_a_deleted_document_is_gone_at_once(records: Records, catalogue: Catalogue) -> None:
    first, second = await add(records, "a", "b")
    job_id = await build(catalogue)
    await catalogue.delete("acme", "ds", first)
    assert (await status(catalogue)).documents == 1
    assert await records.read(lambda c: datasets.live_documents(c, "acme", [first, second])) == {second}
    assert await index(records, job_id) == [second]
    assert not await records.write(lambda c: documents.stored_passages(c, "acme", first, 1))
    with pytest.raises(NotFound) as again:
        await catalogue.delete("acme", "ds", first)
    assert reason(again) == "DOCUMENT_NOT_FOUND"
    with pytest.raises(NotFound):
        await records.read(lambda c: datasets.resolve(c, "acme", (), [first]))
    (fresh,) = await add(records, "a", at=2)
    assert fresh != first, "what is being purged keeps its id"
    (purge_id,) = (await records.read(index_jobs.open_work))[1]
    purge = await records.read(lambda c: index_jobs.purge(c, purge_id))
    assert purge == index_jobs.Purge("acme", "ds", ((first, "acme-ds-a-1"),))
    await records.write(lambda c: index_jobs.finished_purge(c, purge_id))
    assert await records.read(lambda c: index_jobs.purge(c, purge_id)) is None
    assert await add(records, "a", at=3) == [fresh]


async def test_a_deleted_dataset_leaves_its_id_free(records: Records, catalogue: Catalogue) -> None:
    old = await add(records, "a")
    job_id = await build(catalogue, request_id="r")
    await catalogue.delete("acme", "ds")
    for call in (status(catalogue), build(catalogue, request_id="r"), catalogue.delete("acme", "ds")):
        with pytest.raises(NotFound) as caught:
            await call
        assert reason(caught) == "DATASET_NOT_FOUND"
    assert await records.write(lambda c: index_jobs.plan(c, job_id, "m", "f")) == []
    assert (await catalogue.list_datasets("acme", pb.ListDatasetsRequest())).datasets == []
    assert await add(records, "a", at=2) != old
    assert (await status(catalogue)).documents == 1


async def test_another_tenant_sees_nothing(records: Records, catalogue: Catalogue) -> None:
    (document_id,) = await add(records, "a")
    await build(catalogue, request_id="r")
    calls = [
        status(catalogue, "other"),
        build(catalogue, "other"),
        build(catalogue, "other", request_id="r"),
        catalogue.delete("other", "ds"),
        catalogue.delete("other", "ds", document_id),
        catalogue.list_documents("other", pb.ListDocumentsRequest(dataset_id="ds")),
        records.read(lambda c: datasets.resolve(c, "other", ["ds"], ())),
        records.read(lambda c: datasets.resolve(c, "other", (), [document_id])),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            await call
    assert await records.read(lambda c: datasets.live_documents(c, "other", [document_id])) == set()
    assert await records.read(lambda c: datasets.resolve(c, "other", (), ())) == []


async def test_a_document_is_looked_for_in_the_named_datasets(records: Records) -> None:
    (document_id,) = await add(records, "a")
    await add(records, "b", dataset_id="ds2")
    found = await records.read(lambda c: datasets.resolve(c, "acme", ["ds"], [document_id]))
    assert [each.dataset_id for each in found] == ["ds"]
    with pytest.raises(NotFound) as caught:
        await records.read(lambda c: datasets.resolve(c, "acme", ["ds2"], [document_id]))
    assert reason(caught) == "DOCUMENT_NOT_FOUND"

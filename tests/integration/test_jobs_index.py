"""Index jobs and purges as their users see them, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tests.servers.knowledge import Knowledge, WordEmbedder, opened, running
from weft.v1 import error_reason_pb2
from weft.v1 import knowledge_pb2 as pb
from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Reference
from weftd.errors import NotFound, Unavailable
from weftd.stores.passages.port import Passage, Scope
from weftd.stores.records import index_jobs
from weftd.stores.records.conversation_tables import answer_references, turn_events, turns

STORY = "".join(f"Line {n} tells of the marker zyzzyva and a loom. " for n in range(400))


@pytest.fixture
async def knowledge(tmp_path: Path) -> AsyncIterator[Knowledge]:
    async with opened(tmp_path) as made:
        yield made


async def upload(knowledge: Knowledge, files: dict[str, str | bytes], dataset_id: str = "ds") -> list[str]:
    async def requests() -> AsyncIterator[pb.UploadRequest]:
        for name, content in files.items():
            yield pb.UploadRequest(header=pb.UploadHeader(dataset_id=dataset_id, name=name))
            data = content.encode() if isinstance(content, str) else content
            yield pb.UploadRequest(data=data)

    response = await knowledge.uploads.stream("acme", requests())
    return [document.document_id for document in response.documents]


async def indexed(knowledge: Knowledge, dataset_id: str = "ds", **options: int) -> pb.GetStatusResponse:
    """Indexes the dataset and waits for the end."""
    request = pb.BuildIndexRequest(dataset_id=dataset_id, options=pb.IndexOptions(**options))
    await knowledge.catalogue.build_index("acme", request)
    return await ended(knowledge, dataset_id)


async def ended(knowledge: Knowledge, dataset_id: str = "ds") -> pb.GetStatusResponse:
    while True:
        status = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id=dataset_id))
        if status.status not in ("pending", "indexing"):
            return status
        await asyncio.sleep(0.02)


async def found(knowledge: Knowledge, word: str, model_id: str = "words-1") -> list[Passage]:
    hits = await knowledge.passages.match(Scope("acme"), model_id, [word], 1000)
    return sorted((hit.passage for hit in hits), key=lambda passage: (passage.name, passage.ordinal))


def holding(directory: Path, text: str) -> list[str]:
    """Files below the directory that hold the text."""
    return [
        str(path) for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


async def test_documents_are_found_and_a_second_run_changes_nothing(knowledge: Knowledge) -> None:
    files: dict[str, str | bytes] = {
        "story.md": "# Looms\n\n" + STORY,
        "织机.txt": "织机把纬线穿过经线。",
        "scan.pdf": b"%PDF-1.7 broken",
        "what.bin": b"\x00\x01\x02" * 50,
    }
    async with running(knowledge.jobs()):
        await upload(knowledge, files)
        status = await indexed(knowledge)
        assert (status.status, status.progress, status.documents) == ("ready", 1.0, 4)
        assert {error.name for error in status.errors} == {"scan.pdf", "what.bin"}
        assert all(error.reason and error.message.endswith(".") for error in status.errors)
        passages = await found(knowledge, "zyzzyva")
        assert {(p.name, p.heading) for p in passages} == {("story.md", "Looms")}
        assert [p.ordinal for p in passages] == list(range(len(passages)))
        assert [p.content for p in await found(knowledge, "织机")] == ["织机把纬线穿过经线。"]
        assert await knowledge.passages.count(Scope("acme")) == status.chunks
        # A language that the embedder lacks is near nothing by vectors.
        (query,) = await WordEmbedder().embed(["tells of the marker"])
        near = await knowledge.passages.search(Scope("acme"), "words-1", query, 1000)
        assert all(
            np.isfinite(hit.score) and hit.score <= 0.01 for hit in near if hit.passage.name == "织机.txt"
        )
        assert (await indexed(knowledge)) == status
        assert await found(knowledge, "zyzzyva") == passages


async def test_other_options_or_another_model_index_anew(knowledge: Knowledge) -> None:
    async with running(knowledge.jobs()):
        await upload(knowledge, {"story.txt": STORY})
        small = await indexed(knowledge, chunk_size=32)
        large = await indexed(knowledge, chunk_size=512)
        assert small.chunks > 4 * large.chunks
        assert len(await found(knowledge, "zyzzyva")) == large.chunks
    async with running(knowledge.jobs(WordEmbedder("words-2"))):
        await indexed(knowledge, chunk_size=512)
        assert len(await found(knowledge, "zyzzyva", "words-2")) == large.chunks
        assert await found(knowledge, "zyzzyva", "words-1") == []


async def test_many_small_documents_and_one_that_is_added(knowledge: Knowledge) -> None:
    async with running(knowledge.jobs()):
        for batch in range(2):
            await upload(knowledge, {f"{n}.txt": f"Note {batch} {n} on zyzzyva." for n in range(40)})
        assert (await indexed(knowledge)).chunks == 80
        await upload(knowledge, {"late.txt": "One more zyzzyva."})
        status = await indexed(knowledge)
        assert (status.chunks, status.documents) == (81, 81)


async def test_a_deleted_document_leaves_no_byte(knowledge: Knowledge, tmp_path: Path) -> None:
    async with running(knowledge.jobs()):
        gone, kept = await upload(
            knowledge, {"secret plan xylograph.txt": STORY, "kept.txt": "A loom stays. " * 50}
        )
        status = await indexed(knowledge)
        assert holding(tmp_path, "zyzzyva")
        await quote(knowledge, gone, kept)
        await knowledge.catalogue.delete("acme", "ds", gone)
        assert await found(knowledge, "zyzzyva") == []
        left = await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id="ds"))
        assert (left.documents, 0 < left.chunks < status.chunks) == (1, True)
        await purged(knowledge)
        assert await references(knowledge) == [kept, kept]
    assert [p.document_id for p in await found(knowledge, "loom")] == [kept] * left.chunks
    for marker in ("marker zyzzyva", "secret plan xylograph", gone):
        assert holding(tmp_path, marker) == []


async def test_a_deleted_dataset_leaves_no_byte_and_may_be_made_again(
    knowledge: Knowledge, tmp_path: Path
) -> None:
    async with running(knowledge.jobs()):
        (gone,) = await upload(knowledge, {"a.txt": STORY}, "zyzzyva-set")
        await indexed(knowledge, "zyzzyva-set")
        await quote(knowledge, gone, dataset_id="zyzzyva-set")
        await knowledge.catalogue.delete("acme", "zyzzyva-set")
        with pytest.raises(NotFound):
            await knowledge.catalogue.status("acme", pb.GetStatusRequest(dataset_id="zyzzyva-set"))
        await purged(knowledge)
        assert await knowledge.passages.count(Scope("acme")) == 0
        assert await references(knowledge) == []
        await upload(knowledge, {"a.txt": "New words."}, "again")
        assert (await indexed(knowledge, "again")).status == "ready"
    assert holding(tmp_path, "zyzzyva") == []


async def test_a_deletion_while_the_job_runs(knowledge: Knowledge) -> None:
    embedder = Gated()
    async with running(knowledge.jobs(embedder)):
        gone, _ = await upload(knowledge, {"gone.txt": STORY, "kept.txt": "A loom stays."})
        await knowledge.catalogue.build_index("acme", pb.BuildIndexRequest(dataset_id="ds"))
        await embedder.reached.wait()
        await knowledge.catalogue.delete("acme", "ds", gone)
        embedder.gate.set()
        status = await ended(knowledge)
        assert (status.status, status.documents, status.chunks) == ("ready", 1, 1)
        await purged(knowledge)
        assert [p.name for p in await found(knowledge, "loom")] == ["kept.txt"]


async def test_a_dataset_deleted_while_its_job_runs(knowledge: Knowledge, tmp_path: Path) -> None:
    embedder = Gated()
    async with running(knowledge.jobs(embedder)):
        await upload(knowledge, {"gone.txt": STORY})
        await knowledge.catalogue.build_index("acme", pb.BuildIndexRequest(dataset_id="ds"))
        await embedder.reached.wait()
        await knowledge.catalogue.delete("acme", "ds")
        embedder.gate.set()
        await purged(knowledge)
        await upload(knowledge, {"new.txt": "Another loom."})
        assert (await indexed(knowledge)).chunks == 1
        assert [p.name for p in await found(knowledge, "loom")] == ["new.txt"]
    assert not list((tmp_path / "blobs").rglob("*.companion"))


async def test_a_purge_that_was_not_finished_is_taken_up_at_the_start(knowledge: Knowledge) -> None:
    async with running(knowledge.jobs()):
        await upload(knowledge, {"a.txt": STORY})
        await indexed(knowledge)
    await knowledge.catalogue.delete("acme", "ds")
    assert blobs(knowledge)
    async with running(knowledge.jobs()):
        await purged(knowledge)
    assert not blobs(knowledge)


async def test_a_store_that_does_not_answer_is_waited_for(knowledge: Knowledge) -> None:
    embedder = Unreachable(times=2)
    async with running(knowledge.jobs(embedder)):
        await upload(knowledge, {"a.txt": "A loom."})
        assert (await indexed(knowledge)).status == "ready"
        assert embedder.times == 0


async def test_a_fault_ends_the_job_with_its_reason(knowledge: Knowledge) -> None:
    async with running(knowledge.jobs(Broken())):
        await upload(knowledge, {"a.txt": "A loom."})
        status = await indexed(knowledge)
        assert (status.status, status.errors[0].reason) == ("failed", "INTERNAL")
        assert "boom" not in status.errors[0].message
    async with running(knowledge.jobs()):
        assert (await indexed(knowledge)).status == "ready"


class Gated(WordEmbedder):
    """Embeds once `gate` is open; `reached` when it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def embed(self, texts):  # type: ignore[no-untyped-def]
        self.reached.set()
        await self.gate.wait()
        return await super().embed(texts)


class Unreachable(WordEmbedder):
    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    async def embed(self, texts):  # type: ignore[no-untyped-def]
        if self.times:
            self.times -= 1
            raise Unavailable(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, "Wait a moment.")
        return await super().embed(texts)


class Broken(WordEmbedder):
    async def embed(self, texts):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("boom")


def blobs(knowledge: Knowledge) -> list[Path]:
    return [path for path in (knowledge.directory / "blobs" / "kept").rglob("*") if path.is_file()]


async def purged(knowledge: Knowledge) -> None:
    """Waits until no purge is left to do."""
    while (await knowledge.records.read(index_jobs.open_work))[1]:
        await asyncio.sleep(0.02)


async def quote(knowledge: Knowledge, *document_ids: str, dataset_id: str = "ds") -> None:
    """A conversation whose answer quotes these documents, as chat stores it."""
    quoted = [
        Reference(id=n, dataset_id=dataset_id, document_id=document_id, name="xylograph", content="zyzzyva")
        for n, document_id in enumerate(document_ids, 1)
    ]
    event = ChatEvent(type="refs", references=quoted, seq=2).SerializeToString()
    place = {"tenant": "acme", "conversation_id": "c", "position": 1}
    turn = {
        **place,
        "request_id": "r",
        "fingerprint": b"",
        "status": "complete",
        "owner": "",
        "cancel_requested": False,
        "replayable": True,
        "options": b"",
        "last_seq": 3,
        "started_at_ms": 1,
    }

    def write(connection: sa.Connection) -> None:
        turn_id = connection.execute(sa.insert(turns).values(**turn)).inserted_primary_key[0]
        connection.execute(sa.insert(turn_events).values(turn_id=turn_id, seq=2, data=event))
        for reference in quoted:
            row = {
                **place,
                "number": reference.id,
                "dataset_id": dataset_id,
                "document_id": reference.document_id,
                "data": reference.SerializeToString(),
            }
            connection.execute(sa.insert(answer_references).values(**row))

    await knowledge.records.write(write)


async def references(knowledge: Knowledge) -> list[str]:
    """The documents that answers quote: by the stored answers, and by the events for replay."""

    def read(connection: sa.Connection) -> list[str]:
        rows = list(connection.execute(sa.select(answer_references.c.document_id)).scalars())
        events = connection.execute(sa.select(turn_events.c.data)).scalars()
        return rows + [each.document_id for data in events for each in ChatEvent.FromString(data).references]

    return await knowledge.records.read(read)

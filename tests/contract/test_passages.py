"""One contract for every store of passages."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from weftd.errors import Unavailable, reason_name
from weftd.stores.passages import lance
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import DensePassages, LexicalPassages, Passage, Scope
from weftd.text.tokens import search_tokens

MODEL = "model@1"
DIM = 8


def passage(document: str, ordinal: int, content: str, **changes: Any) -> Passage:
    made = Passage("ds", document, ordinal, f"{document}.txt", None, "", content, 1_000)
    return replace(made, **changes)


def unit(*values: float) -> npt.NDArray[np.float32]:
    vector = np.zeros(DIM, np.float32)
    vector[: len(values)] = values
    return (vector / np.linalg.norm(vector)).astype(np.float32)


async def put(
    store: DensePassages | LexicalPassages, tenant: str, *passages: Passage, model: str = MODEL
) -> None:
    """The n-th passage of a document points along the n-th axis, a little off by its document."""
    vectors = np.stack(
        [unit(*[1.0 if axis == p.ordinal % DIM else 0.05 for axis in range(DIM)]) for p in passages]
    )
    await store.put(tenant, model, passages, vectors)


def axis(number: int) -> npt.NDArray[np.float32]:
    return np.eye(DIM, dtype=np.float32)[number]


@pytest.fixture(params=["lance", "milvus", "milvus-lite"])
async def dense(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DensePassages]:
    if request.param == "lance":
        store: DensePassages = await LancePassages.connect(tmp_path / "passages")
    else:
        from weftd.stores.passages.milvus import MilvusPassages

        server = "milvus_uri" if request.param == "milvus" else "milvus_lite_uri"
        store = await MilvusPassages.connect(request.getfixturevalue(server))
    yield store
    await store.close()


@pytest.fixture(params=["lance", "milvus-lite"])
async def lexical(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LexicalPassages]:
    if request.param == "lance":
        store: LexicalPassages = await LancePassages.connect(tmp_path / "passages")
    else:
        from weftd.stores.passages.milvus import MilvusPassages

        store = await MilvusPassages.connect(request.getfixturevalue("milvus_lite_uri"))
    yield store
    await store.close()


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """A tenant of the test's own, with every character that a query language might read."""
    return f"t'\" OR 1=1 -- {request.node.nodeid}"


async def found(
    store: DensePassages, scope: Scope, number: int = 0, limit: int = 10
) -> list[tuple[str, int]]:
    hits = await store.search(scope, MODEL, axis(number), limit)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [(hit.passage.document_id, hit.passage.ordinal) for hit in hits]


async def matched(store: LexicalPassages, scope: Scope, text: str, limit: int = 10) -> list[tuple[str, int]]:
    hits = await store.match(scope, MODEL, search_tokens(text), limit)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    return [(hit.passage.document_id, hit.passage.ordinal) for hit in hits]


async def test_the_nearest_comes_first_with_everything_it_was_put_with(
    dense: DensePassages, tenant: str
) -> None:
    whole = passage(
        "d'1", 3, '第三段 "内容"\n', page=7, heading="标题's", name="文件 名.pdf", uploaded_at_ms=2**41
    )
    await put(dense, tenant, passage("d'1", 0, "zero"), passage("d'1", 1, "one"), whole)
    hits = await dense.search(Scope(tenant), MODEL, axis(3), 2)
    assert len(hits) == 2
    assert hits[0].passage == whole
    assert hits[0].score == pytest.approx(1 / np.sqrt(1 + 7 * 0.05**2), abs=1e-3)


async def test_a_second_put_replaces(dense: DensePassages, tenant: str) -> None:
    await put(dense, tenant, passage("d", 0, "old"), passage("d", 1, "stays"))
    await put(dense, tenant, passage("d", 0, "newer"), passage("d", 0, "new"))
    assert await dense.count(Scope(tenant)) == 2
    hits = await dense.search(Scope(tenant), MODEL, axis(0), 10)
    assert [hit.passage.content for hit in hits] == ["new", "stays"]


async def test_filters(dense: DensePassages, tenant: str) -> None:
    await put(
        dense,
        tenant,
        passage("a", 0, "x", uploaded_at_ms=10),
        passage("b", 0, "x", uploaded_at_ms=20),
        passage("c", 0, "x", dataset_id="other'set", uploaded_at_ms=30),
    )
    assert await found(dense, Scope(tenant, dataset_ids=("other'set",))) == [("c", 0)]
    assert await found(dense, Scope(tenant, document_ids=("b", "nothing"))) == [("b", 0)]
    assert await found(dense, Scope(tenant, uploaded_from_ms=20, uploaded_to_ms=20)) == [("b", 0)]
    assert sorted(await found(dense, Scope(tenant, ("ds",), uploaded_from_ms=10))) == [("a", 0), ("b", 0)]
    assert await found(dense, Scope(tenant, dataset_ids=("' OR '1'='1",))) == []
    assert await found(dense, Scope(tenant, document_ids=('" or tenant != "', "\\"))) == []
    assert await dense.count(Scope(tenant, ("ds",))) == 2


async def test_tenants_and_models_are_apart(dense: DensePassages, tenant: str) -> None:
    await put(dense, tenant, passage("d", 0, "mine"))
    await put(dense, tenant + "2", passage("d", 0, "theirs"))
    await put(dense, tenant, passage("d", 0, "of another model"), model="model@2")
    hits = await dense.search(Scope(tenant), MODEL, axis(0), 10)
    assert [hit.passage.content for hit in hits] == ["mine"]
    await dense.delete(tenant + "2", "ds")
    assert await dense.count(Scope(tenant + "2")) == 0
    assert await dense.count(Scope(tenant)) == 2


async def test_what_was_never_put_is_empty(dense: DensePassages, tenant: str) -> None:
    assert await found(dense, Scope(tenant)) == []
    assert await dense.count(Scope(tenant)) == 0
    await dense.delete(tenant, "ds")
    await dense.compact(tenant)
    await dense.put(tenant, MODEL, [], np.empty((0, DIM), np.float32))
    await dense.ping()


async def test_deleted_rows_are_gone_at_once(dense: DensePassages, tenant: str) -> None:
    await put(
        dense, tenant, passage("a", 0, "x"), passage("b", 0, "x"), passage("c", 0, "x", dataset_id="ds2")
    )
    await put(dense, tenant, passage("a", 0, "x"), model="model@2")
    await dense.delete(tenant, "ds", ["a"])
    assert sorted(await found(dense, Scope(tenant))) == [("b", 0), ("c", 0)]
    assert await dense.count(Scope(tenant, document_ids=("a",))) == 0
    await dense.delete(tenant, "ds2", ["b"])  # of another dataset: stays
    await dense.delete(tenant, "ds2")
    assert await found(dense, Scope(tenant)) == [("b", 0)]
    await dense.compact(tenant)
    assert await found(dense, Scope(tenant)) == [("b", 0)]
    await dense.delete(tenant, "ds")
    assert await dense.count(Scope(tenant)) == 0


async def test_words_find_their_passage(lexical: LexicalPassages, tenant: str) -> None:
    await put(
        lexical,
        tenant,
        passage("a", 0, "機器學習是人工智慧的一個分支", name="報告.pdf"),
        passage("a", 1, "ＲＡＧ combines retrieval with generation. The reports are long."),
        passage("a", 2, "a fox, a fox and another fox", heading="Zoology"),
    )
    assert await matched(lexical, Scope(tenant), "机器学习") == [("a", 0)]
    assert await matched(lexical, Scope(tenant), "rag") == [("a", 1)]
    assert await matched(lexical, Scope(tenant), "ZOOLOGY?") == [("a", 2)]
    assert await matched(lexical, Scope(tenant), "qwertz") == []
    assert await matched(lexical, Scope(tenant), "?!") == []
    assert (await matched(lexical, Scope(tenant), "fox retrieval", limit=1)) != []
    assert await matched(lexical, Scope(tenant), "tokens:* AND (fox' OR \"") == [("a", 2), ("a", 1)][:1]


async def test_words_are_found_within_the_scope(lexical: LexicalPassages, tenant: str) -> None:
    await put(
        lexical,
        tenant,
        passage("a", 0, "apple", uploaded_at_ms=10),
        passage("b", 0, "apple pear", uploaded_at_ms=20),
        passage("c", 0, "apple", dataset_id="ds2", uploaded_at_ms=30),
    )
    await put(lexical, tenant + "2", passage("a", 0, "apple"))
    assert len(await matched(lexical, Scope(tenant), "apple")) == 3
    assert await matched(lexical, Scope(tenant, ("ds2",)), "apple") == [("c", 0)]
    assert await matched(lexical, Scope(tenant, uploaded_to_ms=10), "apple") == [("a", 0)]
    await lexical.delete(tenant, "ds", ["a"])
    assert sorted(await matched(lexical, Scope(tenant), "apple")) == [("b", 0), ("c", 0)]
    await lexical.compact(tenant)
    assert await matched(lexical, Scope(tenant, document_ids=("b",)), "apple") == [("b", 0)]
    await put(lexical, tenant, passage("b", 0, "plum"))
    assert await matched(lexical, Scope(tenant), "pear") == []
    assert await matched(lexical, Scope(tenant), "plum") == [("b", 0)]


async def test_lance_readers_see_what_another_connection_wrote(tmp_path: Path, tenant: str) -> None:
    writer = await LancePassages.connect(tmp_path)
    reader = await LancePassages.connect(tmp_path)
    assert await found(reader, Scope(tenant)) == []
    await put(writer, tenant, passage("a", 0, "x"))
    assert await found(reader, Scope(tenant)) == [("a", 0)]
    await put(writer, tenant, passage("b", 0, "x"))
    await writer.delete(tenant, "ds", ["a"])
    await writer.compact(tenant)
    assert await found(reader, Scope(tenant)) == [("b", 0)]
    await writer.close()
    await reader.close()


async def test_lance_takes_writers_side_by_side(tmp_path: Path, tenant: str) -> None:
    """The table is made by whoever comes first, and no one's rows are lost."""
    stores = [await LancePassages.connect(tmp_path) for _ in range(3)]
    jobs = [
        put(store, tenant, passage(f"d{number}", 0, f"word{number}")) for number, store in enumerate(stores)
    ]
    await asyncio.gather(*jobs)
    assert await stores[0].count(Scope(tenant)) == 3
    assert await matched(stores[1], Scope(tenant), "word2") == [("d2", 0)]
    for store in stores:
        await store.close()


async def test_lance_takes_deleted_bytes_off_the_disk(tmp_path: Path, tenant: str) -> None:
    store = await LancePassages.connect(tmp_path)
    many = [passage("kept", number, f"ordinary text {number}") for number in range(500)]
    await put(store, tenant, *many, passage("gone", 0, "xsecretx"))
    assert _on_disk(tmp_path, b"xsecretx")
    await store.compact(tenant)
    await store.delete(tenant, "ds", ["gone"])
    await store.compact(tenant, erase=True)
    assert not _on_disk(tmp_path, b"xsecretx")
    assert await store.count(Scope(tenant)) == 500
    assert await matched(store, Scope(tenant), "ordinary 17", limit=1) == [("kept", 17)]
    await store.close()


async def test_lance_lets_go_of_deleted_files(
    tmp_path: Path, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await LancePassages.connect(tmp_path)
    for number in range(4):
        await put(store, tenant, *(passage(f"d{number}", each, f"text {each}") for each in range(300)))
        await matched(store, Scope(tenant), "text")
        await store.compact(tenant, erase=True)
    assert _held(tmp_path)
    monkeypatch.setattr(lance, "_SESSION_S", 0.0)
    assert await store.count(Scope(tenant)) == 1200
    gc.collect()
    assert not _held(tmp_path)
    await store.close()


def _held(directory: Path) -> list[str]:
    """Deleted files below `directory` that this process keeps open."""
    descriptors = Path("/proc/self/fd")
    opened = []
    for each in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):
            opened.append(str(each.readlink()))
    return [name for name in opened if name.startswith(str(directory)) and name.endswith("(deleted)")]


async def test_lance_reads_while_it_is_written_and_compacted(tmp_path: Path, tenant: str) -> None:
    writer = await LancePassages.connect(tmp_path)
    reader = await LancePassages.connect(tmp_path)
    await put(writer, tenant, *[passage("kept", number, f"text {number}") for number in range(50)])

    async def write() -> None:
        for number in range(5):
            await put(writer, tenant, passage(f"d{number}", 0, "coming and going"))
            await writer.delete(tenant, "ds", [f"d{number}"])
            await writer.compact(tenant, erase=True)

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await reader.count(Scope(tenant, document_ids=("kept",))) == 50
        assert len(await matched(reader, Scope(tenant), "text 7", limit=1)) == 1
    await writing
    await writer.close()
    await reader.close()


async def test_lance_finds_the_same_with_an_index_of_vectors(
    tmp_path: Path, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weftd.stores.passages.lance._INDEXED_FROM_ROWS", 300)
    store = await LancePassages.connect(tmp_path)
    random = np.random.default_rng(1).normal(size=(400, DIM)).astype(np.float32)
    vectors = random / np.linalg.norm(random, axis=1, keepdims=True)
    many = [passage(f"d{number // 50}", number, f"text {number}") for number in range(400)]
    await store.put(tenant, MODEL, many, vectors)
    await store.compact(tenant)
    await store.put(tenant, MODEL, [passage("late", 0, "text")], vectors[:1])

    async def nearest(number: int, scope: Scope) -> tuple[str, int]:
        (hit, *_) = await store.search(scope, MODEL, vectors[number], 10)
        return hit.passage.document_id, hit.passage.ordinal

    for number in (1, 120, 399):
        assert await nearest(number, Scope(tenant)) == (f"d{number // 50}", number)
        assert await nearest(number, Scope(tenant, document_ids=("late",))) == ("late", 0)
    await store.delete(tenant, "ds", ["d7"])
    await store.compact(tenant, erase=True)
    assert await nearest(120, Scope(tenant)) == ("d2", 120)
    assert (await nearest(399, Scope(tenant)))[0] != "d7"
    await store.delete(tenant, "ds", ["d2", "d3", "d4"])
    await store.compact(tenant, erase=True)
    assert await nearest(1, Scope(tenant)) == ("d0", 1)
    assert await store.count(Scope(tenant)) == 201
    await store.close()


def _on_disk(directory: Path, secret: bytes) -> bool:
    return any(secret in path.read_bytes() for path in directory.rglob("*") if path.is_file())


def _damage(directory: Path) -> None:
    for path in directory.rglob("*.manifest"):
        path.write_bytes(b"damaged")


def _refused(error: Unavailable) -> None:
    assert reason_name(error.reason) == "BACKEND_UNAVAILABLE"
    assert error.metadata == {"backend": "passages"}


async def test_a_directory_that_cannot_be_used_is_unavailable(tmp_path: Path, tenant: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(Unavailable) as refused:
        store = await LancePassages.connect(tmp_path / "file")
        await put(store, tenant, passage("a", 0, "x"))
    _refused(refused.value)


async def test_damaged_files_are_unavailable(tmp_path: Path, tenant: str) -> None:
    store = await LancePassages.connect(tmp_path)
    await put(store, tenant, passage("a", 0, "x"))
    await store.close()
    _damage(tmp_path)
    store = await LancePassages.connect(tmp_path)
    with pytest.raises(Unavailable) as refused:
        await found(store, Scope(tenant))
    _refused(refused.value)
    await store.close()


async def test_a_milvus_that_is_not_there_is_named(tmp_path: Path) -> None:
    from weftd.stores.passages.milvus import MilvusPassages

    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1\b") as refused:
        await MilvusPassages.connect("http://127.0.0.1:1")
    _refused(refused.value)

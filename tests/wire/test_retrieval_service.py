"""RetrievalService on a real server and a real store: what a caller sees."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import error_details_pb2, status_pb2

from weft.v1 import common_pb2, error_reason_pb2, retrieval_pb2, retrieval_pb2_grpc
from weftd.errors import NotFound, Unavailable
from weftd.keys import ensure_keys
from weftd.retrieval.search import Searcher
from weftd.retrieval.service import RetrievalService
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Hit, Passage, Scope, searchable
from weftd.stores.records.datasets import LiveDataset
from weftd.text.language import is_east_asian

KEYS = Path(tempfile.mkdtemp()) / "jwks.json"
ensure_keys(KEYS)
DAY_MS = 86_400_000


def bearer(tenant: str = "acme") -> list[tuple[str, str]]:
    token = mint(
        KEYS, issuer="weft", audience="weft", tenant=tenant, subject="u", roles=("member",), ttl_s=60
    )
    return [("authorization", f"Bearer {token}")]


class Letters:
    """An embedder whose vectors count letters; waits on the query "hang" until it is stopped."""

    model_id, dim, max_tokens = "letters@1", 26, 512

    def __init__(self) -> None:
        self.hanging, self.stopped = asyncio.Event(), asyncio.Event()
        self.embedded: list[str] = []

    def supports(self, text: str) -> bool:
        return not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.embedded += texts
        if texts[0] == "hang":
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.stopped.set()
        counts = [[1e-3 + text.lower().count(chr(97 + letter)) for letter in range(26)] for text in texts]
        vectors = np.array(counts, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return []

    async def close(self) -> None: ...


class Down(LancePassages):
    """A store that breaks after it was opened."""

    breaks: Exception | None = None

    async def search(self, scope: Scope, model_id: str, vector: Any, limit: int) -> list[Hit]:
        if self.breaks:
            raise self.breaks
        return await super().search(scope, model_id, vector, limit)


PASSAGES = [
    Passage("ds_en", "doc_a", 0, "zebra.pdf", 3, "Stripes", "The zebra has black and white stripes.", DAY_MS),
    Passage("ds_en", "doc_b", 0, "lion.txt", None, "", "The lion hunts the zebra at night.", 2 * DAY_MS),
    Passage("ds_zh", "doc_c", 0, "制度.docx", 1, "年假", "員工每年有十天年假，請提前三天申請。", 3 * DAY_MS),
]


class Bench:
    def __init__(self, store: Down) -> None:
        self.store, self.embedder, self.drain = store, Letters(), Drain(grace_s=1)
        self.datasets = {"acme": {"ds_en": "letters@1", "ds_zh": "letters@1", "ds_new": ""}}
        self.deleted: set[str] = set()
        searcher = Searcher(store, store, self.embedder)
        service = RetrievalService(searcher, self.resolve, self.live, self.drain)
        name = "weft.v1.RetrievalService"
        add: Callable[..., None] = retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server
        verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=KEYS)
        self.server = build_server(
            [Service(name, service, add)], CallInterceptor(verifier, self.drain), Health([name])
        )
        address = f"127.0.0.1:{bind(self.server, '127.0.0.1:0')}"
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = retrieval_pb2_grpc.RetrievalServiceStub(self.channel)

    async def resolve(
        self, tenant: str, dataset_ids: Sequence[str], document_ids: Sequence[str]
    ) -> list[LiveDataset]:
        known = self.datasets.get(tenant, {})
        for missing in set(dataset_ids) - set(known):
            raise NotFound(error_reason_pb2.ERROR_REASON_DATASET_NOT_FOUND, f"There is no dataset {missing}.")
        for missing in set(document_ids) - {passage.document_id for passage in PASSAGES}:
            raise NotFound(
                error_reason_pb2.ERROR_REASON_DOCUMENT_NOT_FOUND, f"There is no document {missing}."
            )
        return [LiveDataset(name, known[name]) for name in dataset_ids or known]

    async def live(self, tenant: str, document_ids: Collection[str]) -> set[str]:
        return set(document_ids) - self.deleted

    async def search(self, query: str, tenant: str = "acme", **more: Any) -> retrieval_pb2.SearchResponse:
        return await self.stub.Search(
            retrieval_pb2.SearchRequest(query=query, **more), metadata=bearer(tenant), timeout=10
        )

    async def refused(
        self, query: str, tenant: str = "acme", **more: Any
    ) -> tuple[grpc.aio.AioRpcError, str]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.search(query, tenant, **more)
        return raised.value, detail(raised.value, error_details_pb2.ErrorInfo).reason


def detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    found = [kind() for each in status_pb2.Status.FromString(packed).details if each.Is(kind.DESCRIPTOR)]
    for each in status_pb2.Status.FromString(packed).details:
        if each.Unpack(found[0]):
            return found[0]
    raise AssertionError(f"no {kind} in {error}")


def documents(response: retrieval_pb2.SearchResponse) -> list[str]:
    return [result.document_id for result in response.results]


def filters(**more: Any) -> retrieval_pb2.SearchFilters:
    return retrieval_pb2.SearchFilters(**more)


def ask(query_id: int, query: str) -> retrieval_pb2.StreamSearchRequest:
    return retrieval_pb2.StreamSearchRequest(
        query_id=query_id, search=retrieval_pb2.SearchRequest(query=query)
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = await Down.connect(tmp_path)
    assert isinstance(store, Down)
    bench = Bench(store)
    vectors = await bench.embedder.embed([searchable(passage) for passage in PASSAGES])
    await store.put("acme", "letters@1", PASSAGES, vectors)
    bench.embedder.embedded.clear()
    await bench.server.start()
    yield bench
    await bench.channel.close()
    await bench.server.stop(None)
    await store.close()


async def test_a_reference_has_all_that_a_reader_needs(bench: Bench) -> None:
    response = await bench.search("black and white stripes")
    first = response.results[0]
    assert first == common_pb2.Reference(
        id=1,
        dataset_id="ds_en",
        document_id="doc_a",
        name="zebra.pdf",
        page=3,
        heading="Stripes",
        content="The zebra has black and white stripes.",
        score=first.score,
    )
    assert [result.id for result in response.results] == list(range(1, len(response.results) + 1))
    assert not response.results[1].HasField("page")
    assert all(0 <= result.score <= 1 for result in response.results)
    assert list(response.metadata.routes) == ["dense", "lexical"]
    assert list(response.metadata.degraded) == []
    assert response.metadata.HasField("execution_time_ms")


async def test_a_chinese_question_finds_traditional_text_by_its_words(bench: Bench) -> None:
    response = await bench.search("员工的年假有几天？")
    assert documents(response) == ["doc_c"]
    assert list(response.metadata.routes) == ["lexical"]
    assert bench.embedder.embedded == []


async def test_search_types_and_top_k(bench: Bench) -> None:
    assert list((await bench.search("zebra", search_type="lexical")).metadata.routes) == ["lexical"]
    assert list((await bench.search("zebra", search_type="dense")).metadata.routes) == ["dense"]
    assert len((await bench.search("zebra", top_k=1)).results) == 1
    error, reason = await bench.refused("员工的年假", search_type="dense")
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_filters_by_dataset_document_and_day(bench: Bench) -> None:
    async def found(**more: Any) -> list[str]:
        return sorted(
            documents(await bench.search("zebra 年假", filters=filters(**more), search_type="lexical"))
        )

    assert await found() == ["doc_a", "doc_b", "doc_c"]
    assert await found(dataset_ids=["ds_zh"]) == ["doc_c"]
    assert await found(dataset_ids=["ds_new"]) == []
    assert await found(document_ids=["doc_b", "doc_c"]) == ["doc_b", "doc_c"]
    assert await found(dataset_ids=["ds_zh"], document_ids=["doc_a"]) == []
    assert await found(date_range=common_pb2.DateRange(start="1970-01-03", end="1970-01-03")) == ["doc_b"]


async def test_every_bad_field_is_named(bench: Bench) -> None:
    error, reason = await bench.refused(" ", top_k=101, search_type="graph")
    assert (error.code(), reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    fields = detail(error, error_details_pb2.BadRequest).field_violations
    assert {field.field for field in fields} == {"query", "top_k", "search_type"}


async def test_what_is_unknown_or_anothers_is_not_found(bench: Bench) -> None:
    for tenant, wanted in (("acme", ["ds_other"]), ("evil", ["ds_en"])):
        error, reason = await bench.refused("zebra", tenant, filters=filters(dataset_ids=wanted))
        assert (error.code(), reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    _, reason = await bench.refused("zebra", filters=filters(document_ids=["doc_x"]))
    assert reason == "DOCUMENT_NOT_FOUND"
    assert documents(await bench.search("zebra", "evil")) == []


async def test_a_deleted_document_is_not_found_before_it_is_purged(bench: Bench) -> None:
    bench.deleted.add("doc_a")
    assert "doc_a" not in documents(await bench.search("zebra stripes"))


async def test_a_dataset_of_another_embedder_is_refused_and_told_how_to_mend_it(bench: Bench) -> None:
    bench.datasets["acme"]["ds_zh"] = "older@1"
    error, reason = await bench.refused("zebra", filters=filters(dataset_ids=["ds_zh"]))
    assert (error.code(), reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EMBEDDER_CHANGED")
    assert "/api/v1/knowledge/index" in (error.details() or "")
    response = await bench.search("zebra")
    assert set(documents(response)) == {"doc_a", "doc_b"}
    assert list(response.metadata.degraded) == ["datasets"]
    bench.datasets["acme"] = {"ds_zh": "older@1"}
    _, reason = await bench.refused("zebra")
    assert reason == "EMBEDDER_CHANGED"


async def test_a_store_that_is_down_degrades_one_route_and_fails_the_other(bench: Bench) -> None:
    bench.store.breaks = Unavailable(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, "down")
    response = await bench.search("zebra")
    assert list(response.metadata.degraded) == ["dense"]
    assert len(response.results) == 2
    error, reason = await bench.refused("zebra", search_type="dense")
    assert (error.code(), reason) == (grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE")
    bench.store.breaks = None
    assert list((await bench.search("zebra")).metadata.degraded) == []


async def test_a_passed_deadline_or_a_cancel_stops_the_search(bench: Bench) -> None:
    request = retrieval_pb2.SearchRequest(query="hang", search_type="dense")
    call = bench.stub.Search(request, metadata=bearer())
    await bench.embedder.hanging.wait()
    call.cancel()
    async with asyncio.timeout(0.5):
        await bench.embedder.stopped.wait()
    bench.embedder.stopped.clear()
    with pytest.raises(grpc.aio.AioRpcError):
        await bench.stub.Search(request, metadata=bearer(), timeout=0.1)
    async with asyncio.timeout(0.5):
        await bench.embedder.stopped.wait()


async def test_a_newer_query_cancels_the_older(bench: Bench) -> None:
    stream = bench.stub.StreamSearch(metadata=bearer(), timeout=10)
    await stream.write(ask(1, "hang"))
    await bench.embedder.hanging.wait()
    await stream.write(ask(5, "lion"))
    answer = await stream.read()
    assert (answer.query_id, answer.response.results[0].document_id) == (5, "doc_b")
    assert bench.embedder.stopped.is_set()
    await stream.write(ask(6, "zebra stripes"))
    await stream.done_writing()
    assert (await stream.read()).query_id == 6
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_query_that_fails_is_answered_and_the_stream_goes_on(bench: Bench) -> None:
    stream = bench.stub.StreamSearch(metadata=bearer(), timeout=10)
    await stream.write(ask(3, ""))
    answer = await stream.read()
    assert (answer.query_id, answer.error_reason) == (3, "INVALID_FIELD")
    await stream.write(ask(3, "zebra"))
    answer = await stream.read()
    assert (answer.query_id, answer.error_reason) == (3, "INVALID_FIELD")
    bench.store.breaks = RuntimeError("disk gone")  # what no one foresaw
    await stream.write(ask(4, "zebra"))
    answer = await stream.read()
    assert (answer.error_reason, "disk gone" in answer.error_message) == ("INTERNAL", False)
    bench.store.breaks = None
    await stream.write(ask(5, "zebra"))
    assert (await stream.read()).error_reason == ""
    stream.cancel()


async def test_a_stream_of_typing_is_answered_for_its_last_query(bench: Bench) -> None:
    stream = bench.stub.StreamSearch(metadata=bearer(), timeout=10)
    for number in range(1, 41):
        await stream.write(ask(number, "zebra stripes"[: 1 + number // 4]))
    await stream.done_writing()
    answered = [answer.query_id async for answer in stream]
    assert answered[-1] == 40
    assert answered == sorted(set(answered))


async def test_a_stream_that_is_cancelled_stops_its_search(bench: Bench) -> None:
    stream = bench.stub.StreamSearch(metadata=bearer())
    await stream.write(ask(1, "hang"))
    await bench.embedder.hanging.wait()
    stream.cancel()
    async with asyncio.timeout(0.5):
        await bench.embedder.stopped.wait()


async def test_a_stopping_server_answers_what_runs_and_ends_the_stream(bench: Bench) -> None:
    stream = bench.stub.StreamSearch(metadata=bearer(), timeout=10)
    await stream.write(ask(1, "zebra"))
    assert (await stream.read()).query_id == 1
    bench.drain.begin()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stream.read()
    assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "DRAINING"

"""Routes side by side: which are taken, which are missed, what stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from weft.v1 import error_reason_pb2
from weftd.errors import InvalidArgument, ResourceExhausted, Unavailable
from weftd.retrieval.search import Searcher
from weftd.stores.passages.port import Hit, Passage, Scope
from weftd.text.language import is_east_asian

SCOPE = Scope("acme")


def hit(name: str, content: str = "text") -> Hit:
    return Hit(Passage("ds", name, 0, name, None, "", content, 0), 1.0)


class Embedder:
    model_id, dim, max_tokens = "m", 2, 8

    def supports(self, text: str) -> bool:
        return not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 2), np.float32)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return []

    async def close(self) -> None: ...


class Store:
    """Finds `hits`, fails, or waits for ever and says when it was stopped."""

    def __init__(self, hits: list[Hit] | None = None, *, fails: bool = False, hangs: bool = False) -> None:
        self._hits, self._fails, self._hangs = hits or [], fails, hangs
        self.started, self.stopped = asyncio.Event(), asyncio.Event()
        self.words: list[str] = []

    async def search(self, scope: Scope, model_id: str, query: object, limit: int) -> list[Hit]:
        self.started.set()
        try:
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.stopped.set()
        if self._fails:
            raise Unavailable(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, "down")
        return self._hits[:limit]

    async def match(self, scope: Scope, model_id: str, tokens: Sequence[str], limit: int) -> list[Hit]:
        self.words = list(tokens)
        return await self.search(scope, model_id, tokens, limit)


class Reranker:
    """Likes passages by the number that is their name; fails, or waits for ever, where told to."""

    waiting = 0

    def __init__(self, *, fails: bool = False, hangs: bool = False) -> None:
        self._fails, self._hangs = fails, hangs
        self.passages: list[str] = []

    def supports(self, text: str) -> bool:
        return not is_east_asian(text)

    async def score(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        self.passages = list(passages)
        if self._hangs:
            await asyncio.Event().wait()
        if self._fails:
            raise Unavailable(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, "down")
        return np.array([int(passage.split()[0]) / 100 for passage in passages], np.float32)

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


def searcher(dense: Store, lexical: Store, concurrent: int = 8, reranker: Reranker | None = None) -> Searcher:
    return Searcher(dense, lexical, Embedder(), reranker, concurrent)  # type: ignore[arg-type]  # fakes of two methods


def names(hits: Sequence[Hit]) -> list[str]:
    return [hit.passage.document_id for hit in hits]


async def test_both_routes_are_fused() -> None:
    found = await searcher(Store([hit("a"), hit("both")]), Store([hit("b"), hit("both")])).search(
        "q", SCOPE, 2
    )
    assert (found.routes, found.degraded) == (("dense", "lexical"), ())
    assert names(found.hits)[0] == "both"
    assert len(found.hits) == 2


async def test_a_language_that_the_embedder_does_not_know_leaves_its_route_out() -> None:
    dense, lexical = Store([hit("noise")]), Store([hit("right")])
    found = await searcher(dense, lexical).search("什么是机器学习？", SCOPE, 5)
    assert (names(found.hits), found.routes, found.degraded) == (["right"], ("lexical",), ())
    assert not dense.started.is_set()
    with pytest.raises(InvalidArgument, match="lexical"):
        await searcher(dense, lexical).search("什么是机器学习？", SCOPE, 5, ["dense"])


async def test_vectors_of_passages_in_such_a_language_are_noise() -> None:
    dense = Store([hit("noise", "这一段是中文，模型不认识它"), hit("known")])
    found = await searcher(dense, Store()).search("q", SCOPE, 5)
    assert names(found.hits) == ["known"]


async def test_the_words_of_a_query_are_looked_up_once_each() -> None:
    lexical = Store()
    await searcher(Store(), lexical).search("The cat, the HAT " + "x " * 300, SCOPE, 5, ["lexical"])
    assert lexical.words == ["the", "cat", "hat", "x"]


@pytest.mark.parametrize("failing", ["dense", "lexical"])
async def test_a_route_that_fails_is_reported(failing: str) -> None:
    dense = Store([hit("d")], fails=failing == "dense")
    lexical = Store([hit("l")], fails=failing == "lexical")
    found = await searcher(dense, lexical).search("q", SCOPE, 5)
    assert found.degraded == (failing,)
    assert names(found.hits) == [{"dense": "l", "lexical": "d"}[failing]]


async def test_a_route_that_hangs_is_stopped_before_the_deadline() -> None:
    dense = Store(hangs=True)
    found = await searcher(dense, Store([hit("l")])).search("q", SCOPE, 5, time_left_s=1.0)
    assert (names(found.hits), found.degraded) == (["l"], ("dense",))
    assert dense.stopped.is_set()


async def test_no_route_is_an_error() -> None:
    with pytest.raises(Unavailable):
        await searcher(Store(fails=True), Store(fails=True)).search("q", SCOPE, 5)
    with pytest.raises(Unavailable):
        await searcher(Store(fails=True), Store([hit("l")])).search("q", SCOPE, 5, ["dense"])


async def test_cancelling_stops_both_routes() -> None:
    dense, lexical = Store(hangs=True), Store(hangs=True)
    task = asyncio.create_task(searcher(dense, lexical).search("q", SCOPE, 5))
    await dense.started.wait()
    await lexical.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dense.stopped.is_set()
    assert lexical.stopped.is_set()


async def test_too_many_searches_are_refused_and_room_comes_back() -> None:
    dense = Store(hangs=True)
    crowded = searcher(dense, Store([hit("l")]), concurrent=1)
    task = asyncio.create_task(crowded.search("q", SCOPE, 5))
    await dense.started.wait()
    with pytest.raises(ResourceExhausted):
        await crowded.search("q", SCOPE, 5, ["lexical"])
    task.cancel()
    await asyncio.wait([task])
    assert names((await crowded.search("q", SCOPE, 5, ["lexical"])).hits) == ["l"]


NUMBERED = [hit(str(number)) for number in range(40)]


async def test_a_reranker_puts_the_first_passages_in_order() -> None:
    reranker = Reranker()
    found = await searcher(Store(NUMBERED), Store(), reranker=reranker).search("q", SCOPE, 30)
    assert names(found.hits) == [*map(str, range(23, -1, -1)), *map(str, range(24, 30))]
    assert (found.routes, found.degraded) == (("dense", "lexical"), ())
    scores = [hit.score for hit in found.hits]
    assert scores[:24] == pytest.approx([number / 100 for number in range(23, -1, -1)])
    assert scores == sorted(scores, reverse=True)
    assert reranker.passages[0] == "0\ntext"  # the text by which it is found


async def test_what_is_cut_off_is_read_by_the_reranker_before() -> None:
    found = await searcher(Store(NUMBERED), Store(), reranker=Reranker()).search("q", SCOPE, 2)
    assert names(found.hits) == ["23", "22"]


@pytest.mark.parametrize("reranker", [Reranker(fails=True), Reranker(hangs=True)], ids=["fails", "hangs"])
async def test_a_reranker_that_does_not_answer_is_reported(reranker: Reranker) -> None:
    search = searcher(Store(NUMBERED), Store(), reranker=reranker)
    found = await search.search("q", SCOPE, 3, time_left_s=0.5)
    assert (names(found.hits), found.degraded) == (["0", "1", "2"], ("rerank",))


async def test_a_reranker_is_not_asked_in_vain() -> None:
    reranker = Reranker()
    assert (await searcher(Store(), Store(), reranker=reranker).search("q", SCOPE, 3)).hits == []
    chinese = await searcher(Store(), Store(NUMBERED), reranker=reranker).search("什么是机器学习？", SCOPE, 3)
    assert (names(chinese.hits), chinese.degraded) == (["0", "1", "2"], ())
    assert reranker.passages == []

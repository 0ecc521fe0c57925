"""A search along several routes at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from weft.v1 import error_reason_pb2
from weftd.errors import InvalidArgument, ResourceExhausted, Unavailable
from weftd.inference.port import Embedder, Reranker
from weftd.retrieval.fuse import fuse
from weftd.stores.passages.port import DensePassages, Hit, LexicalPassages, Scope, searchable
from weftd.text.tokens import search_tokens

ROUTES = ("dense", "lexical")
# Passages that each route brings to the fusion, at least: what one ranks 30th may be the other's first.
_DEPTH = 50
# Words of a query that are looked up, in its order.
_WORDS = 256
_ROUTE_TIMEOUT_S = 3.0
# The first passages of the fusion, which the reranker puts in order. On two cores it reads 50 a second.
_HEAD = 24
# A route may use that share of the caller's time; the rest is for answering without it.
_SHARE_OF_TIME = 0.8

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """`routes`: those that answered. `degraded`: what did not, though it should have; "rerank" too."""

    hits: list[Hit]
    routes: tuple[str, ...]
    degraded: tuple[str, ...]


class Searcher:
    """Searches `dense` and `lexical` side by side; at most `concurrent` searches at once."""

    def __init__(
        self,
        dense: DensePassages,
        lexical: LexicalPassages,
        embedder: Embedder,
        reranker: Reranker | None = None,
        concurrent: int = 128,
    ) -> None:
        self._dense = dense
        self._lexical = lexical
        self._embedder = embedder
        self._reranker = reranker
        self._concurrent = concurrent
        self._running = asyncio.Semaphore(concurrent)

    @property
    def running(self) -> int:
        """Searches that run now; for any thread."""
        return self._concurrent - self._running._value

    @property
    def model_id(self) -> str:
        """Of the embedder: what was indexed with another model is not found."""
        return self._embedder.model_id

    async def search(
        self,
        query: str,
        scope: Scope,
        limit: int,
        routes: Collection[str] = ROUTES,
        time_left_s: float | None = None,
    ) -> Found:
        """The `limit` best passages of `scope` for `query`.

        A route that fails or takes too long is left out and reported. The dense route is left out
        too where the embedder does not know the query's language, and so are its passages in such a
        language: their vectors mean nothing. Where there is a reranker that knows the language it puts
        the first ones in order; when it fails they keep theirs. When cancelled it stops its routes first.

        Raises `Unavailable` when no route answered, `InvalidArgument` when only the dense one was
        asked for and does not know the language, `ResourceExhausted` when too many searches run.
        """
        wanted = [route for route in ROUTES if route in routes]
        if not self._embedder.supports(query):
            wanted = [route for route in wanted if route != "dense"]
        if not wanted:
            raise InvalidArgument(
                {"search_type": 'the embedding model does not know the query\'s language: use "lexical"'}
            )
        if self._running.locked():
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                "Too many searches run at once. Try again in a second.",
            )
        depth = max(_DEPTH, 2 * limit)
        searches = {"dense": self._by_vector, "lexical": self._by_words}
        deadline = None if time_left_s is None else time.monotonic() + _SHARE_OF_TIME * time_left_s
        async with self._running:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    route: group.create_task(_attempt(route, searches[route](query, scope, depth), deadline))
                    for route in wanted
                }
            answers = {route: task.result() for route, task in tasks.items()}
            rankings = {route: answer for route, answer in answers.items() if isinstance(answer, list)}
            failures = [answer for answer in answers.values() if not isinstance(answer, list)]
            if not rankings:
                raise failures[0]
            degraded = tuple(route for route in wanted if route not in rankings)
            hits = fuse(rankings, max(limit, _HEAD))
            if hits and self._reranker is not None and self._reranker.supports(query):
                order = await _attempt("rerank", _reranked(self._reranker, query, hits), deadline)
                hits, degraded = (
                    (order, degraded) if isinstance(order, list) else (hits, (*degraded, "rerank"))
                )
        return Found(hits[:limit], tuple(rankings), degraded)

    async def _by_vector(self, query: str, scope: Scope, depth: int) -> list[Hit]:
        (vector,) = await self._embedder.embed([query])
        hits = await self._dense.search(scope, self._embedder.model_id, vector, depth)
        return [hit for hit in hits if self._embedder.supports(hit.passage.content)]

    async def _by_words(self, query: str, scope: Scope, depth: int) -> list[Hit]:
        tokens = await asyncio.to_thread(search_tokens, query)
        words = list(dict.fromkeys(tokens))[:_WORDS]
        return await self._lexical.match(scope, self._embedder.model_id, words, depth)


async def _reranked(reranker: Reranker, query: str, hits: Sequence[Hit]) -> list[Hit]:
    """`hits`, the first of them in the reranker's order and with its scores; none behind has more."""
    head, rest = hits[:_HEAD], hits[_HEAD:]
    scores = await reranker.score(query, [searchable(hit.passage) for hit in head])
    ranked = [Hit(head[index].passage, float(scores[index])) for index in np.argsort(-scores, kind="stable")]
    return ranked + [Hit(hit.passage, hit.score * ranked[-1].score) for hit in rest]


async def _attempt(
    step: str, work: Awaitable[list[Hit]], deadline: float | None
) -> list[Hit] | ResourceExhausted | Unavailable:
    """What the step gave, or why it did not answer. `deadline` is of time.monotonic()."""
    left_s = math.inf if deadline is None else max(0.0, deadline - time.monotonic())
    timeout_s = min(_ROUTE_TIMEOUT_S, left_s)
    failure: ResourceExhausted | Unavailable
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        failure = Unavailable(
            error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The {step} search took longer than {timeout_s:.1f} s. Try again, with more time if you can.",
            metadata={"backend": "passages"},
        )
    except (ResourceExhausted, Unavailable) as error:
        failure = error
    log.warning("route_failed", route=step, reason=failure.message)
    return failure

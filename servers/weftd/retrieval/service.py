"""RetrievalService: checks the request, searches, answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any

import structlog

from weft.v1 import common_pb2, error_reason_pb2, retrieval_pb2, retrieval_pb2_grpc
from weftd.errors import FailedPrecondition, InvalidArgument, WeftError, reason_name
from weftd.retrieval.request import Query, read
from weftd.retrieval.search import Found, Searcher
from weftd.rpc import caller
from weftd.rpc.drain import Drain
from weftd.stores.passages.port import Hit, Scope
from weftd.stores.records.datasets import LiveDataset

log = structlog.get_logger()


# (tenant, dataset ids, document ids) → the tenant's live datasets among them, all of them where both
# are empty. Raises `NotFound` for an id that the tenant does not have.
Resolve = Callable[[str, Sequence[str], Sequence[str]], Awaitable[Sequence[LiveDataset]]]
# (tenant, document ids) → those among them that were not deleted.
LiveDocuments = Callable[[str, Collection[str]], Awaitable[Collection[str]]]
# Passages of a document that was just deleted may be found until its purge is done, and are dropped:
# so many more are looked for.
_SPARE = 20


class RetrievalService(retrieval_pb2_grpc.RetrievalServiceServicer):
    def __init__(
        self, searcher: Searcher, resolve: Resolve, live_documents: LiveDocuments, drain: Drain
    ) -> None:
        self._searcher = searcher
        self._resolve = resolve
        self._live_documents = live_documents
        self._drain = drain

    async def Search(
        self, request: retrieval_pb2.SearchRequest, context: Any
    ) -> retrieval_pb2.SearchResponse:
        return await self._search(request)

    async def StreamSearch(
        self, request_iterator: AsyncIterator[retrieval_pb2.StreamSearchRequest], context: Any
    ) -> AsyncIterator[retrieval_pb2.StreamSearchResponse]:
        answers: asyncio.Queue[retrieval_pb2.StreamSearchResponse | None] = asyncio.Queue(1)
        reading = asyncio.create_task(self._follow(request_iterator, answers))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await reading
            self._drain.refuse_new()
        finally:
            await _stop(reading)

    async def _follow(
        self,
        requests: AsyncIterator[retrieval_pb2.StreamSearchRequest],
        answers: asyncio.Queue[retrieval_pb2.StreamSearchResponse | None],
    ) -> None:
        """Runs the newest query; ends `answers` with None when there will be no more."""
        newest = 0
        running: asyncio.Task[None] | None = None
        try:
            while (request := await self._next(requests)) is not None:
                if request.query_id <= newest:
                    await answers.put(_refused(request.query_id, newest))
                    continue
                newest = request.query_id
                if running is not None:
                    await _stop(running)
                running = asyncio.create_task(self._answer(request, answers))
            if running is not None:
                await running
        except Exception:
            await answers.put(None)
            raise
        finally:
            if running is not None:
                await _stop(running)
        await answers.put(None)

    async def _next(
        self, requests: AsyncIterator[retrieval_pb2.StreamSearchRequest]
    ) -> retrieval_pb2.StreamSearchRequest | None:
        """The next request; None when the client will send no more, or this server is stopping."""
        arriving = asyncio.ensure_future(anext(requests, None))
        leaving = asyncio.ensure_future(self._drain.started.wait())
        try:
            await asyncio.wait({arriving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return arriving.result() if arriving.done() else None
        finally:
            arriving.cancel()
            leaving.cancel()

    async def _answer(
        self,
        request: retrieval_pb2.StreamSearchRequest,
        answers: asyncio.Queue[retrieval_pb2.StreamSearchResponse | None],
    ) -> None:
        answer = retrieval_pb2.StreamSearchResponse(query_id=request.query_id)
        try:
            answer.response.CopyFrom(await self._search(request.search))
        except WeftError as error:
            answer.error_reason, answer.error_message = reason_name(error.reason), error.message
            answer.retry_after_ms = error.retry_after_ms
        except Exception:
            log.exception("search_failed", request_id=caller.current().request_id)
            answer.error_reason = reason_name(error_reason_pb2.ERROR_REASON_INTERNAL)
            answer.error_message = "The search failed in the server. Try again; its log has the request id."
        await answers.put(answer)

    async def _search(self, request: retrieval_pb2.SearchRequest) -> retrieval_pb2.SearchResponse:
        started = time.monotonic()
        query = read(request)
        who = caller.current()
        datasets = await self._resolve(who.tenant, query.dataset_ids, query.document_ids)
        searched, left_out = self._searchable(query, datasets)
        if searched:
            scope = Scope(who.tenant, tuple(searched), query.document_ids, query.from_ms, query.to_ms)
            found = await self._searcher.search(
                query.text, scope, query.limit + _SPARE, query.routes, who.time_left_s()
            )
        else:
            found = Found([], (), ())
        alive = await self._live_documents(who.tenant, {hit.passage.document_id for hit in found.hits})
        hits = [hit for hit in found.hits if hit.passage.document_id in alive][: query.limit]
        degraded = [*found.degraded, *(["datasets"] if left_out else [])]
        elapsed_ms = round((time.monotonic() - started) * 1_000)
        log.info("searched", routes=found.routes, degraded=degraded, hits=len(hits), elapsed_ms=elapsed_ms)
        return retrieval_pb2.SearchResponse(
            results=_references(hits),
            metadata=retrieval_pb2.SearchMetadata(
                routes=found.routes, degraded=degraded, execution_time_ms=elapsed_ms
            ),
        )

    def _searchable(self, query: Query, datasets: Sequence[LiveDataset]) -> tuple[list[str], list[str]]:
        """Ids of the datasets to search, and of those that need another embedding model.

        Raises `FailedPrecondition` when the request asks for one of the latter, or there are no others.
        """
        indexed = [dataset for dataset in datasets if dataset.model_id]
        current = [dataset.dataset_id for dataset in indexed if dataset.model_id == self._searcher.model_id]
        others = [dataset.dataset_id for dataset in indexed if dataset.model_id != self._searcher.model_id]
        if others and (query.dataset_ids or query.document_ids or not current):
            raise FailedPrecondition(
                error_reason_pb2.ERROR_REASON_EMBEDDER_CHANGED,
                f"Dataset {others[0]} was indexed with another embedding model than the one set now. "
                f'Index it again: POST /api/v1/knowledge/index {{"dataset_id": "{others[0]}", '
                '"index_type": "vector"}.',
                metadata={"dataset_id": others[0]},
            )
        return current, others


def _references(hits: Sequence[Hit]) -> list[common_pb2.Reference]:
    return [
        common_pb2.Reference(
            id=number,
            dataset_id=hit.passage.dataset_id,
            document_id=hit.passage.document_id,
            name=hit.passage.name,
            page=hit.passage.page,
            heading=hit.passage.heading,
            content=hit.passage.content,
            score=hit.score,
        )
        for number, hit in enumerate(hits, start=1)
    ]


def _refused(query_id: int, newest: int) -> retrieval_pb2.StreamSearchResponse:
    error = InvalidArgument({"query_id": f"is {query_id}, not larger than the last one's {newest}"})
    return retrieval_pb2.StreamSearchResponse(
        query_id=query_id,
        error_reason=reason_name(error.reason),
        error_message=error.message,
        retry_after_ms=error.retry_after_ms,
    )


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen here: whoever awaits the task has it too

"""Search over one stream, while someone types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from weft.connection import Connection, Outcome, being_cancelled, new_id
from weft.errors import Unavailable, from_event, from_rpc
from weft.v1.common_pb2 import DateRange
from weft.v1.retrieval_pb2 import SearchFilters, SearchRequest, SearchResponse, StreamSearchRequest
from weft.v1.retrieval_pb2_grpc import RetrievalServiceStub


def search_request(
    query: str,
    top_k: int,
    dataset_ids: Sequence[str],
    document_ids: Sequence[str],
    uploaded_from: str,
    uploaded_to: str,
    search_type: str,
) -> SearchRequest:
    filters = SearchFilters(dataset_ids=dataset_ids, document_ids=document_ids)
    if uploaded_from or uploaded_to:
        filters.date_range.CopyFrom(DateRange(start=uploaded_from, end=uploaded_to))
    return SearchRequest(query=query, top_k=top_k, filters=filters, search_type=search_type)


async def search_stream(
    connection: Connection, requests: AsyncIterator[tuple[str, SearchRequest]]
) -> AsyncIterator[tuple[str, SearchResponse]]:
    """Sends each request as it comes; yields the query of each that is answered, and the answer."""
    metadata = await connection.metadata(new_id())
    call = RetrievalServiceStub(connection.channel).StreamSearch(metadata=metadata)
    outcome = Outcome(call)
    asked: dict[int, str] = {}

    async def send() -> None:
        query_id = 0
        async for query, request in requests:
            query_id += 1
            asked[query_id] = query
            try:
                await call.write(StreamSearchRequest(query_id=query_id, search=request))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the call has ended: its reader hears why
        await call.done_writing()

    sending = asyncio.create_task(send())
    # Where the queries themselves fail, so does the call; `_read` raises what they raised.
    sending.add_done_callback(lambda task: task.cancelled() or (task.exception() and call.cancel()))
    try:
        while (answer := await _read(call, outcome, connection, sending)) is not None:
            query = asked[answer.query_id]
            for older in [query_id for query_id in asked if query_id <= answer.query_id]:
                del asked[older]
            if answer.error_reason:
                raise from_event(answer.error_reason, answer.error_message, answer.retry_after_ms)
            yield query, answer.response
    finally:
        call.cancel()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _read(call: Any, outcome: Outcome, connection: Connection, sending: asyncio.Task[None]) -> Any:
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise from_rpc(outcome.error(error), connection.address) from None
    except asyncio.CancelledError:
        if being_cancelled():
            raise
        if sending.done() and (failure := sending.exception()) is not None:
            raise failure from None
        raise Unavailable("The search was broken off. Ask again.") from None
    return None if message is grpc.aio.EOF else message

"""The work of one turn: find passages, let the model write, hand on what it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import structlog

from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.common_pb2 import Message, Reference, Usage
from weft.v1.models_pb2 import GenerateRequest
from weft.v1.retrieval_pb2 import SearchFilters, SearchRequest
from weftd.chat.context import model_messages, search_query
from weftd.chat.ports import Models, Retrieval
from weftd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    WeftError,
    reason_name,
)

__all__ = ["Answer", "write_answer"]

_DEFAULT_TOP_K = 5
# No model of ours writes so much; one that never stops must not fill the memory.
_MOST_CHARACTERS = 262_144
# What the caller has to mend, or what ends the turn; anything else that retrieval raises it can do without.
_FATAL = (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)

log = structlog.get_logger()


@dataclass(slots=True)
class Answer:
    """What goes with the text of a finished answer."""

    references: list[Reference] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    degraded: list[str] = field(default_factory=list)


async def write_answer(
    retrieval: Retrieval,
    models: Models,
    request: StreamChatRequest,
    question: str,
    history: Sequence[Message],
    prefix: str,
    on_delta: Callable[[str], None],
) -> Answer:
    """Answers `question`; `on_delta` gets the text as it is written.

    `request` holds the options, `history` the messages before the question. `prefix` is what was
    written of the answer before another server died: the model goes on after it, or raises
    FailedPrecondition MODEL_CANNOT_CONTINUE.
    """
    answer = Answer()
    passages = await _find_passages(retrieval, request, search_query(history, question), answer.degraded)
    if request.use_graph_rag:
        answer.degraded.append("graph")
    generate = GenerateRequest(
        model_id=request.model_id,
        messages=model_messages(history, question),
        passages=passages,
        prefix=prefix,
        grounded=True,
    )
    if request.HasField("temperature"):
        generate.temperature = request.temperature
    streamed = request.stream or not request.HasField("stream")
    held: list[str] = []
    written = 0
    async with aclosing(models.generate(generate)) as events:
        async for event in events:
            if event.type == "delta":
                # PostgreSQL keeps no NUL, and no reader wants one.
                text = event.content.replace("\0", "") if "\0" in event.content else event.content
                written += len(text)
                if streamed:
                    on_delta(text)
                else:
                    held.append(text)
                if written < _MOST_CHARACTERS:
                    continue
            elif event.type == "done":
                answer.usage = event.usage
                if event.finish_reason == "small_talk":
                    passages = []
            if held:
                on_delta("".join(held))
            answer.references = passages
            return answer
    raise Unavailable(
        error_reason_pb2.ERROR_REASON_MODEL_BROKEN, "The model's answer broke off. Ask again in a moment."
    )


async def _find_passages(
    retrieval: Retrieval, request: StreamChatRequest, query: str, degraded: list[str]
) -> list[Reference]:
    top_k = request.top_k or _DEFAULT_TOP_K
    try:
        found = await retrieval.search(
            SearchRequest(query=query, top_k=top_k, filters=SearchFilters(dataset_ids=request.dataset_ids))
        )
    except _FATAL:
        raise
    except WeftError as error:
        log.warning("retrieval_missing", reason=reason_name(error.reason), request_id=request.request_id)
        degraded.append("retrieval")
        return []
    degraded.extend(found.metadata.degraded)
    passages = list(found.results[:top_k])
    for number, passage in enumerate(passages, 1):
        passage.id = number
    return passages

"""Answers that were given under a request id, so that the same call again gets the same answer."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa

from weft.v1 import error_reason_pb2
from weftd.errors import InvalidArgument
from weftd.stores.records.dataset_tables import knowledge_requests
from weftd.stores.records.datasets import insert_new

__all__ = ["digest", "forget_before", "recall", "remember"]

_c = knowledge_requests.c


def digest(*content: str | int) -> str:
    """A hash of what was asked."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def recall(connection: sa.Connection, tenant: str, request_id: str, asked: str) -> str | None:
    """The answer that was given; None for a new id. InvalidArgument REQUEST_ID_REUSED for other content."""
    row = connection.execute(
        sa.select(_c.digest, _c.answer).where(_c.tenant == tenant, _c.request_id == request_id)
    ).one_or_none()
    if row is None:
        return None
    if row.digest != asked:
        raise InvalidArgument(
            {"request_id": "was used for another call"},
            reason=error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED,
            message="This request id was used for a call with other content. Choose a new one.",
        )
    return str(row.answer)


def remember(
    connection: sa.Connection,
    tenant: str,
    request_id: str,
    asked: str,
    *,
    dataset_id: str,
    answer: str,
    now_ms: int,
) -> None:
    insert_new(
        connection,
        knowledge_requests,
        {
            "tenant": tenant,
            "request_id": request_id,
            "dataset_id": dataset_id,
            "digest": asked,
            "answer": answer,
            "created_at_ms": now_ms,
        },
    )


def forget_before(connection: sa.Connection, before_ms: int) -> None:
    connection.execute(sa.delete(knowledge_requests).where(_c.created_at_ms < before_ms))

"""Conversations as people see them: lists, messages, ratings, deletion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent, RateAnswerRequest
from weft.v1.common_pb2 import Reference
from weftd.stores.records.conversation_tables import (
    answer_references,
    conversations,
    messages,
    ratings,
    turn_events,
    turns,
)
from weftd.stores.records.statement import Statement
from weftd.stores.records.turn_log import text_so_far
from weftd.stores.records.turns import find, lock

__all__ = [
    "ConversationRow",
    "MessageRow",
    "delete",
    "forget_references",
    "latest",
    "page",
    "rate",
    "read",
]


@dataclass(frozen=True, slots=True)
class ConversationRow:
    conversation_id: str
    title: str
    created_at_ms: int
    updated_at_ms: int
    running_request_id: str


@dataclass(slots=True)
class MessageRow:
    position: int
    role: str
    content: str
    request_id: str
    created_at_ms: int
    status: str
    rating: str
    references: list[Reference] = field(default_factory=list)


_RUNNING = turns.alias("running")
_SELECT = sa.select(
    conversations.c.conversation_id,
    conversations.c.title,
    conversations.c.created_at_ms,
    conversations.c.updated_at_ms,
    sa.func.coalesce(_RUNNING.c.request_id, ""),
).select_from(
    conversations.outerjoin(
        _RUNNING,
        (_RUNNING.c.tenant == conversations.c.tenant)
        & (_RUNNING.c.conversation_id == conversations.c.conversation_id)
        & (_RUNNING.c.status == sa.text("'running'")),
    )
)
_READ = Statement(
    _SELECT.where(
        conversations.c.tenant == sa.bindparam("tenant"),
        conversations.c.conversation_id == sa.bindparam("conversation_id"),
    )
)

_RUNNING_TURN = Statement(
    sa.select(turns.c.turn_id, turns.c.position, turns.c.request_id, turns.c.started_at_ms).where(
        turns.c.tenant == sa.bindparam("tenant"),
        turns.c.conversation_id == sa.bindparam("conversation_id"),
        turns.c.status == sa.text("'running'"),
    )
)
_PAGE = Statement(
    sa.select(
        messages.c.position,
        messages.c.role,
        messages.c.content,
        messages.c.request_id,
        messages.c.created_at_ms,
        messages.c.status,
        sa.func.coalesce(ratings.c.rating, ""),
    )
    .select_from(
        messages.outerjoin(
            ratings,
            (ratings.c.tenant == messages.c.tenant)
            & (ratings.c.conversation_id == messages.c.conversation_id)
            & (ratings.c.request_id == messages.c.request_id)
            & (messages.c.role == "assistant"),
        )
    )
    .where(
        messages.c.tenant == sa.bindparam("tenant"),
        messages.c.conversation_id == sa.bindparam("conversation_id"),
        messages.c.position > sa.bindparam("after"),
        messages.c.role != "system",
    )
    .order_by(messages.c.position)
    .limit(sa.bindparam("most"))
)
_REFERENCES = Statement(
    sa.select(answer_references.c.position, answer_references.c.data)
    .where(
        answer_references.c.tenant == sa.bindparam("tenant"),
        answer_references.c.conversation_id == sa.bindparam("conversation_id"),
        answer_references.c.position.between(sa.bindparam("first"), sa.bindparam("last")),
    )
    .order_by(answer_references.c.position, answer_references.c.number)
)


def read(connection: sa.Connection, tenant: str, conversation_id: str) -> ConversationRow | None:
    """One conversation; None where the tenant has no such one."""
    row = _READ.first(connection, {"tenant": tenant, "conversation_id": conversation_id})
    return None if row is None else ConversationRow(*row)


def latest(
    connection: sa.Connection, tenant: str, most: int, after: tuple[int, str] | None = None
) -> list[ConversationRow]:
    """The tenant's conversations, the latest first, those after `after` = (updated_at_ms, id) of the last."""
    place = sa.tuple_(conversations.c.updated_at_ms, conversations.c.conversation_id)
    query = (
        _SELECT.where(conversations.c.tenant == tenant)
        .order_by(conversations.c.updated_at_ms.desc(), conversations.c.conversation_id.desc())
        .limit(most)
    )
    if after is not None:
        query = query.where(place < sa.tuple_(sa.literal(after[0]), sa.literal(after[1])))
    return [ConversationRow(*row) for row in connection.execute(query)]


def page(
    connection: sa.Connection, tenant: str, conversation_id: str, most: int, after_position: int = -1
) -> list[MessageRow]:
    """The messages after that position, the oldest first; a running answer comes last, as far as it is."""
    key = {"tenant": tenant, "conversation_id": conversation_id}
    # Before the messages: an answer that ends meanwhile is then found as one of both.
    running = _RUNNING_TURN.first(connection, key)
    rows = _PAGE.all(connection, {**key, "after": after_position, "most": most})
    found = [MessageRow(*row) for row in rows]
    if found:
        _add_references(connection, key, found)
    last = found[-1].position if found else after_position
    if running is None or len(found) == most:
        return found
    turn_id, position, request_id, started_at_ms = running
    if position > last:
        found.append(
            MessageRow(
                position=position,
                role="assistant",
                content=text_so_far(connection, turn_id),
                request_id=request_id,
                created_at_ms=started_at_ms,
                status="running",
                rating="",
            )
        )
    return found


def _add_references(connection: sa.Connection, key: dict[str, str], found: list[MessageRow]) -> None:
    """Puts in what the messages, which are in the order of their positions, rest on."""
    quoted = _REFERENCES.all(connection, {**key, "first": found[0].position, "last": found[-1].position})
    by_position = {message.position: message.references for message in found}
    for position, data in quoted:
        by_position[position].append(Reference.FromString(data))


def delete(connection: sa.Connection, tenant: str, conversation_id: str) -> bool:
    """Deletes a conversation with all that hangs on it. False where the tenant has no such one.

    The worker of a running turn finds that it has lost it.
    """
    key = {"tenant": tenant, "conversation_id": conversation_id}
    if not lock(connection, tenant, conversation_id):
        return False
    # The turns first: who ends one meanwhile is waited for, and what that left is deleted below.
    gone = connection.execute(sa.delete(turns).filter_by(**key).returning(turns.c.turn_id)).scalars().all()
    connection.execute(sa.delete(turn_events).where(turn_events.c.turn_id.in_(gone)))
    for table in (answer_references, ratings, messages, conversations):
        connection.execute(sa.delete(table).filter_by(**key))
    return True


def rate(connection: sa.Connection, tenant: str, rating: RateAnswerRequest, now_ms: int) -> bool:
    """Sets the rating of an answer; an empty one takes it back. False where the tenant has no such turn."""
    key = {"conversation_id": rating.conversation_id, "request_id": rating.request_id}
    if find(connection, tenant, **key) is None:
        return False
    connection.execute(sa.delete(ratings).filter_by(tenant=tenant, **key))
    if rating.rating:
        connection.execute(
            sa.insert(ratings).values(
                tenant=tenant, **key, rating=rating.rating, comment=rating.comment, rated_at_ms=now_ms
            )
        )
    return True


def forget_references(
    connection: sa.Connection,
    tenant: str,
    dataset_id: str,
    document_ids: Sequence[str] = (),
    *,
    most: int = 100,
) -> int:
    """Takes what answers quote of a dataset, or of some of its documents, out of `most` answers.

    Their stored `refs` events lose it too. Returns how many answers; call again until it is 0.
    """
    of_documents = [answer_references.c.tenant == tenant, answer_references.c.dataset_id == dataset_id]
    if document_ids:
        of_documents.append(answer_references.c.document_id.in_(document_ids))
    answers = connection.execute(
        sa.select(answer_references.c.conversation_id, answer_references.c.position)
        .where(*of_documents)
        .distinct()
        .limit(most)
    ).all()
    for conversation_id, position in answers:
        key = {"tenant": tenant, "conversation_id": conversation_id, "position": position}
        connection.execute(sa.delete(answer_references).where(*of_documents).filter_by(**key))
        turn_id = connection.execute(sa.select(turns.c.turn_id).filter_by(**key)).scalar()
        if turn_id is not None:
            _strip_events(connection, turn_id, dataset_id, frozenset(document_ids))
    return len(answers)


def _strip_events(
    connection: sa.Connection, turn_id: int, dataset_id: str, document_ids: frozenset[str]
) -> None:
    rows = connection.execute(
        sa.select(turn_events.c.seq, turn_events.c.data).filter_by(turn_id=turn_id)
    ).all()
    for seq, data in rows:
        event = ChatEvent.FromString(data)
        kept = [
            reference
            for reference in event.references
            if reference.dataset_id != dataset_id
            or (document_ids and reference.document_id not in document_ids)
        ]
        if len(kept) == len(event.references):
            continue
        del event.references[:]
        event.references.extend(kept)
        connection.execute(
            sa.update(turn_events).filter_by(turn_id=turn_id, seq=seq).values(data=event.SerializeToString())
        )

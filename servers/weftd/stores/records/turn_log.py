"""The events of turns: written in order by one writer, read again, and closed with the answer.

A writer names the `seq` it goes on from; where that is no longer the last one, or the turn is another
worker's, it has lost the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Reference
from weftd.stores.records.conversation_tables import answer_references, messages, turn_events, turns
from weftd.stores.records.statement import Statement

__all__ = ["End", "append", "close_ownerless", "end", "events_after", "text_so_far"]


@dataclass(frozen=True, slots=True)
class End:
    """How a turn ended: "complete", "cancelled", "interrupted" or "failed", and what is kept of it."""

    status: str
    text: str
    references: Sequence[Reference]
    now_ms: int


_OWN = (
    sa.update(turns)
    .where(
        turns.c.turn_id == sa.bindparam("of_turn"),
        turns.c.owner == sa.bindparam("of_worker"),
        turns.c.status == sa.text("'running'"),
        turns.c.last_seq == sa.bindparam("after_seq"),
    )
    .values(last_seq=sa.bindparam("new_seq"))
)
_ADVANCE = Statement(_OWN)
_END = Statement(
    _OWN.where(turns.c.tenant == sa.bindparam("of_tenant"))
    .values(status=sa.bindparam("new_status"), ended_at_ms=sa.bindparam("at_ms"))
    .returning(turns.c.conversation_id, turns.c.request_id, turns.c.position)
)
_EVENTS = Statement(
    sa.select(turn_events.c.data)
    .where(turn_events.c.turn_id == sa.bindparam("of_turn"), turn_events.c.seq > sa.bindparam("after_seq"))
    .order_by(turn_events.c.seq)
    .limit(sa.bindparam("most"))
)
_INSERT_EVENTS = Statement(sa.insert(turn_events))
_INSERT_MESSAGES = Statement(sa.insert(messages))
_INSERT_REFERENCES = Statement(sa.insert(answer_references))


def append(
    connection: sa.Connection, turn_id: int, worker: str, after_seq: int, events: Sequence[ChatEvent]
) -> bool:
    """Stores the events that follow `after_seq`. False: the turn is no longer this worker's.

    Calling it again with the same events, after a commit of unknown outcome, changes nothing.
    """
    last = events[-1].seq
    moved = _ADVANCE.count(
        connection, {"of_turn": turn_id, "of_worker": worker, "after_seq": after_seq, "new_seq": last}
    )
    if not moved:
        return _was_stored(connection, turn_id, worker, last)
    _store_events(connection, turn_id, events)
    return True


def end(
    connection: sa.Connection,
    tenant: str,
    turn_id: int,
    worker: str,
    after_seq: int,
    events: Sequence[ChatEvent],
    ending: End,
) -> bool:
    """Stores a turn's last events, its answer and what it rests on, in one commit. Otherwise as `append`."""
    last = events[-1].seq
    place = _END.first(
        connection,
        {
            "of_tenant": tenant,
            "of_turn": turn_id,
            "of_worker": worker,
            "after_seq": after_seq,
            "new_seq": last,
            "new_status": ending.status,
            "at_ms": ending.now_ms,
        },
    )
    if place is None:
        return _was_stored(connection, turn_id, worker, last)
    _store_events(connection, turn_id, events)
    conversation_id, request_id, position = place
    _store_answer(connection, tenant, conversation_id, request_id, position, ending)
    return True


def close_ownerless(
    connection: sa.Connection,
    tenant: str,
    turn_id: int,
    owner: str,
    *,
    status: str,
    event: ChatEvent,
    now_ms: int,
) -> bool:
    """Ends a running turn whose worker `owner` is gone, with `event` (its `seq` is set here) as the last.

    False where someone else took it over or ended it meanwhile.
    """
    # The owner goes first: it may only seem dead, and must not take this ending for its own commit.
    last_seq = connection.execute(
        sa.update(turns)
        .filter_by(tenant=tenant, turn_id=turn_id, owner=owner, status="running")
        .values(owner="")
        .returning(turns.c.last_seq)
    ).scalar()
    if last_seq is None:
        return False
    event.seq = last_seq + 1
    ending = End(status, text_so_far(connection, turn_id), (), now_ms)
    return end(connection, tenant, turn_id, "", last_seq, [event], ending)


def events_after(connection: sa.Connection, turn_id: int, after_seq: int, most: int) -> list[ChatEvent]:
    """The next `most` events after `after_seq`."""
    rows = _EVENTS.all(connection, {"of_turn": turn_id, "after_seq": after_seq, "most": most})
    return [ChatEvent.FromString(data) for (data,) in rows]


def text_so_far(connection: sa.Connection, turn_id: int) -> str:
    """The text of the deltas that are stored."""
    rows = connection.execute(
        sa.select(turn_events.c.data).where(turn_events.c.turn_id == turn_id).order_by(turn_events.c.seq)
    )
    return "".join(ChatEvent.FromString(data).content for (data,) in rows)


def _was_stored(connection: sa.Connection, turn_id: int, worker: str, last: int) -> bool:
    row = connection.execute(
        sa.select(turns.c.turn_id).filter_by(turn_id=turn_id, owner=worker, last_seq=last)
    ).first()
    return row is not None


def _store_events(connection: sa.Connection, turn_id: int, events: Sequence[ChatEvent]) -> None:
    _INSERT_EVENTS.many(
        connection,
        [{"turn_id": turn_id, "seq": event.seq, "data": event.SerializeToString()} for event in events],
    )


def _store_answer(
    connection: sa.Connection, tenant: str, conversation_id: str, request_id: str, position: int, ending: End
) -> None:
    place = {"tenant": tenant, "conversation_id": conversation_id, "position": position}
    answer = {
        **place,
        "created_at_ms": ending.now_ms,
        "role": "assistant",
        "content": ending.text,
        "request_id": request_id,
        "status": ending.status,
    }
    _INSERT_MESSAGES.many(connection, [answer])
    _INSERT_REFERENCES.many(
        connection,
        [
            {
                **place,
                "number": reference.id,
                "dataset_id": reference.dataset_id,
                "document_id": reference.document_id,
                "data": reference.SerializeToString(),
            }
            for reference in ending.references
        ],
    )

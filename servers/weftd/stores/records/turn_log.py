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

__all__ = ["End", "append", "close_ownerless", "end", "events_after", "text_so_far"]


@dataclass(frozen=True, slots=True)
class End:
    """How a turn ended: "complete", "cancelled", "interrupted" or "failed", and what is kept of it."""

    status: str
    text: str
    references: Sequence[Reference]
    now_ms: int


_ADVANCE = (
    sa.update(turns)
    .where(
        turns.c.turn_id == sa.bindparam("of_turn"),
        turns.c.owner == sa.bindparam("of_worker"),
        turns.c.status == sa.text("'running'"),
        turns.c.last_seq == sa.bindparam("after_seq"),
    )
    .values(last_seq=sa.bindparam("new_seq"))
)
_END = _ADVANCE.values(status=sa.bindparam("new_status"), ended_at_ms=sa.bindparam("at_ms"))
_EVENTS = (
    sa.select(turn_events.c.data)
    .where(turn_events.c.turn_id == sa.bindparam("of_turn"), turn_events.c.seq > sa.bindparam("after_seq"))
    .order_by(turn_events.c.seq)
    .limit(sa.bindparam("most"))
)
_PLACE = sa.select(turns.c.conversation_id, turns.c.request_id, turns.c.position).where(
    turns.c.tenant == sa.bindparam("tenant"), turns.c.turn_id == sa.bindparam("of_turn")
)
_INSERT_EVENTS = sa.insert(turn_events)
_INSERT_MESSAGES = sa.insert(messages)
_INSERT_REFERENCES = sa.insert(answer_references)


def append(
    connection: sa.Connection, turn_id: int, worker: str, after_seq: int, events: Sequence[ChatEvent]
) -> bool:
    """Stores the events that follow `after_seq`. False: the turn is no longer this worker's.

    Calling it again with the same events, after a commit of unknown outcome, changes nothing.
    """
    last = events[-1].seq
    moved = connection.execute(
        _ADVANCE, {"of_turn": turn_id, "of_worker": worker, "after_seq": after_seq, "new_seq": last}
    )
    if moved.rowcount == 0:
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
    moved = connection.execute(
        _END,
        {
            "of_turn": turn_id,
            "of_worker": worker,
            "after_seq": after_seq,
            "new_seq": last,
            "new_status": ending.status,
            "at_ms": ending.now_ms,
        },
    )
    if moved.rowcount == 0:
        return _was_stored(connection, turn_id, worker, last)
    _store_events(connection, turn_id, events)
    _store_answer(connection, tenant, turn_id, ending)
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
    rows = connection.execute(_EVENTS, {"of_turn": turn_id, "after_seq": after_seq, "most": most})
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
    connection.execute(
        _INSERT_EVENTS,
        [{"turn_id": turn_id, "seq": event.seq, "data": event.SerializeToString()} for event in events],
    )


def _store_answer(connection: sa.Connection, tenant: str, turn_id: int, ending: End) -> None:
    turn = connection.execute(_PLACE, {"tenant": tenant, "of_turn": turn_id}).one()
    place = {"tenant": tenant, "conversation_id": turn.conversation_id, "position": turn.position}
    connection.execute(
        _INSERT_MESSAGES,
        {
            **place,
            "created_at_ms": ending.now_ms,
            "role": "assistant",
            "content": ending.text,
            "request_id": turn.request_id,
            "status": ending.status,
        },
    )
    if ending.references:
        connection.execute(
            _INSERT_REFERENCES,
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

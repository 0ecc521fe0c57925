"""The events of turns: written in order by one writer, read again, and closed with the answer.

A writer names the `seq` it goes on from; where that is no longer the last one, or the turn is another
worker's, it has lost the turn. Many turns are written to at once: a statement is for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, TypeAlias

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Reference
from weftd.stores.records.conversation_tables import turn_events, turns
from weftd.stores.records.statement import RowsStatement, Statement

__all__ = [
    "Append",
    "End",
    "LiveDocuments",
    "append",
    "close_ownerless",
    "end",
    "events_after",
    "forget_documents",
    "text_so_far",
]

LiveDocuments: TypeAlias = Callable[[sa.Connection, str, Collection[str]], Collection[str]]
"""(connection, tenant, document ids) → those among them that were not deleted."""


class Append(NamedTuple):
    """The events that `worker` has for its turn after `after_seq`: one at least, each a serialized ChatEvent.

    Serialized already: messages take longer to pickle for the process that writes than to store.
    """

    turn_id: int
    worker: str
    after_seq: int
    events: Sequence[bytes]

    @property
    def last_seq(self) -> int:
        return self.after_seq + len(self.events)


class End(NamedTuple):
    """A turn's last events, how it ended, and what is kept of it.

    `status` is "complete", "cancelled", "interrupted" or "failed".
    """

    tenant: str
    last: Append
    status: str
    text: str
    references: Sequence[Reference]
    now_ms: int


_OWN = (
    " FROM (VALUES {rows}) AS v WHERE turns.turn_id = v.column1 AND turns.owner = v.column2"
    " AND turns.status = 'running' AND turns.last_seq = v.column3"
)
_ADVANCE = RowsStatement("UPDATE turns SET last_seq = v.column4" + _OWN, "(?, ?, ?, ?)")
_END = RowsStatement(
    "UPDATE turns SET last_seq = v.column4, status = v.column5, ended_at_ms = v.column6" + _OWN,
    "(?, ?, ?, ?, ?, ?)",
)
_STORED = RowsStatement(
    "SELECT turns.turn_id, turns.owner, turns.last_seq FROM (VALUES {rows}) AS v, turns"
    " WHERE turns.turn_id = v.column1 AND turns.owner = v.column2 AND turns.last_seq = v.column3",
    "(?, ?, ?)",
)
# What a commit of unknown outcome has stored already is left as it is.
_INSERT_EVENTS = RowsStatement(
    "INSERT INTO turn_events (turn_id, seq, data) VALUES {rows} ON CONFLICT DO NOTHING", "(?, ?, ?)"
)
_INSERT_ANSWERS = RowsStatement(
    "INSERT INTO messages"
    " (tenant, conversation_id, position, created_at_ms, role, content, request_id, status)"
    " SELECT t.tenant, t.conversation_id, t.position, v.column2, 'assistant', v.column3, t.request_id,"
    " t.status"
    " FROM (VALUES {rows}) AS v, turns AS t WHERE t.turn_id = v.column1 ON CONFLICT DO NOTHING",
    "(?, ?, ?)",
)
_INSERT_REFERENCES = RowsStatement(
    "INSERT INTO answer_references"
    " (tenant, conversation_id, position, number, dataset_id, document_id, data)"
    " SELECT t.tenant, t.conversation_id, t.position, v.column2, v.column3, v.column4, v.column5"
    " FROM (VALUES {rows}) AS v, turns AS t WHERE t.turn_id = v.column1 ON CONFLICT DO NOTHING",
    "(?, ?, ?, ?, ?)",
)
_EVENTS = Statement(
    sa.select(turn_events.c.data)
    .where(turn_events.c.turn_id == sa.bindparam("of_turn"), turn_events.c.seq > sa.bindparam("after_seq"))
    .order_by(turn_events.c.seq)
    .limit(sa.bindparam("most"))
)


def append(connection: sa.Connection, appends: Sequence[Append]) -> list[bool]:
    """Stores events of turns, each turn once. False: it is no longer this worker's.

    Calling it again with the same events, after a commit of unknown outcome, changes nothing.
    """
    rows = [(each.turn_id, each.worker, each.after_seq, each.last_seq) for each in appends]
    return _store(connection, appends, _ADVANCE.count(connection, rows))


def end(
    connection: sa.Connection, ends: Sequence[End], *, live_documents: LiveDocuments
) -> list[set[str] | None]:
    """Stores the last events of turns, their answers and what these rest on. Otherwise as `append`.

    A document that was deleted while an answer was written leaves no trace in it. Returns the ids of those
    for each turn; None: it is no longer this worker's.
    """
    quoted: dict[str, set[str]] = defaultdict(set)
    for each in ends:
        quoted[each.tenant].update(reference.document_id for reference in each.references)
    live = {tenant: live_documents(connection, tenant, ids) if ids else () for tenant, ids in quoted.items()}
    gone = [
        {reference.document_id for reference in each.references}.difference(live[each.tenant])
        for each in ends
    ]
    kept = _end(connection, [_without(each, deleted) for each, deleted in zip(ends, gone, strict=True)])
    return [deleted if is_kept else None for deleted, is_kept in zip(gone, kept, strict=True)]


def forget_documents(events: Sequence[ChatEvent], document_ids: Collection[str]) -> None:
    """Takes the references to those documents out of the events."""
    for event in events:
        if event.type == "refs":
            kept = [each for each in event.references if each.document_id not in document_ids]
            del event.references[:]
            event.references.extend(kept)


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
    last = Append(turn_id, "", last_seq, [event.SerializeToString()])
    (ended,) = _end(connection, [End(tenant, last, status, text_so_far(connection, turn_id), (), now_ms)])
    return ended


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


def _store(connection: sa.Connection, appends: Sequence[Append], advanced: int) -> list[bool]:
    """Stores the events of those turns that stand at the last of them; so many were just brought there."""
    kept = [True] * len(appends)
    if advanced < len(appends):
        rows = [(each.turn_id, each.worker, each.last_seq) for each in appends]
        own = set(_STORED.all(connection, rows))
        kept = [row in own for row in rows]
    events = [
        (each.turn_id, seq, event)
        for each, is_kept in zip(appends, kept, strict=True)
        if is_kept
        for seq, event in enumerate(each.events, each.after_seq + 1)
    ]
    _INSERT_EVENTS.count(connection, events)
    return kept


def _without(end: End, document_ids: Collection[str]) -> End:
    if not document_ids:
        return end
    events = [ChatEvent.FromString(event) for event in end.last.events]
    forget_documents(events, document_ids)
    return end._replace(
        last=end.last._replace(events=[event.SerializeToString() for event in events]),
        references=[each for each in end.references if each.document_id not in document_ids],
    )


def _end(connection: sa.Connection, ends: Sequence[End]) -> list[bool]:
    rows = [
        (
            each.last.turn_id,
            each.last.worker,
            each.last.after_seq,
            each.last.last_seq,
            each.status,
            each.now_ms,
        )
        for each in ends
    ]
    kept = _store(connection, [each.last for each in ends], _END.count(connection, rows))
    own = [each for each, is_kept in zip(ends, kept, strict=True) if is_kept]
    _INSERT_ANSWERS.count(connection, [(each.last.turn_id, each.now_ms, each.text) for each in own])
    references = [
        (each.last.turn_id, quoted.id, quoted.dataset_id, quoted.document_id, quoted.SerializeToString())
        for each in own
        for quoted in each.references
    ]
    _INSERT_REFERENCES.count(connection, references)
    return kept

"""Turns: begun, found, taken back.

The rules that hold over all processes are kept here by the database: one running turn in a
conversation, and one turn for a request id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Message
from weftd.stores.records.conversation_tables import conversations, messages, turns
from weftd.stores.records.statement import Statement
from weftd.stores.records.turn_log import close_ownerless
from weftd.stores.records.workers import is_alive

__all__ = ["Begun", "Busy", "NewTurn", "StoredTurn", "begin", "find", "history", "lock", "withdraw"]


@dataclass(frozen=True, slots=True)
class NewTurn:
    """What a turn is begun with. `earlier` counts only where the conversation is new."""

    tenant: str
    conversation_id: str
    request_id: str
    question: str
    fingerprint: bytes
    options: bytes
    earlier: Sequence[Message]
    worker: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class StoredTurn:
    """A turn as it is stored; the columns of `turns`."""

    turn_id: int
    fingerprint: bytes
    status: str
    owner: str
    options: bytes
    position: int
    last_seq: int
    ended_at_ms: int | None
    replayable: bool
    request_id: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The turn was begun. `history` are the messages before the question, the oldest first."""

    turn_id: int
    history: list[Message]


@dataclass(frozen=True, slots=True)
class Busy:
    """Another turn of the conversation is running."""

    request_id: str


_TURN = sa.select(
    turns.c.turn_id,
    turns.c.fingerprint,
    turns.c.status,
    turns.c.owner,
    turns.c.options,
    turns.c.position,
    turns.c.last_seq,
    turns.c.ended_at_ms,
    turns.c.replayable,
    turns.c.request_id,
).where(
    turns.c.tenant == sa.bindparam("tenant"),
    turns.c.conversation_id == sa.bindparam("conversation_id"),
)
_FIND = Statement(_TURN.where(turns.c.request_id == sa.bindparam("request_id")))
_FIND_OR_RUNNING = Statement(
    _TURN.where((turns.c.request_id == sa.bindparam("request_id")) | (turns.c.status == sa.text("'running'")))
)
# Both dialects read these alike; SQLAlchemy has one construct for each.
_CONVERSATION = Statement(
    sa.text(
        "INSERT INTO conversations"
        " (tenant, conversation_id, title, created_at_ms, updated_at_ms, next_position)"
        " VALUES (:tenant, :conversation_id, :title, :now_ms, :now_ms, :added)"
        " ON CONFLICT (tenant, conversation_id) DO UPDATE SET updated_at_ms = excluded.updated_at_ms,"
        " next_position = conversations.next_position + excluded.next_position"
        " RETURNING next_position"
    )
)
_BEGIN = Statement(
    sa.text(
        "INSERT INTO turns (tenant, conversation_id, request_id, fingerprint, status, owner,"
        " cancel_requested, options, position, last_seq, started_at_ms, replayable)"
        " VALUES (:tenant, :conversation_id, :request_id, :fingerprint, 'running', :worker,"
        " FALSE, :options, :position, 0, :now_ms, TRUE)"
        " ON CONFLICT DO NOTHING RETURNING turn_id"
    )
)
_KNOWN = sa.select(conversations.c.next_position).where(
    conversations.c.tenant == sa.bindparam("tenant"),
    conversations.c.conversation_id == sa.bindparam("conversation_id"),
)
_HISTORY = Statement(
    sa.select(messages.c.role, messages.c.content)
    .where(
        messages.c.tenant == sa.bindparam("tenant"),
        messages.c.conversation_id == sa.bindparam("conversation_id"),
        messages.c.position < sa.bindparam("before"),
    )
    .order_by(messages.c.position.desc())
    .limit(sa.bindparam("most"))
)
_INSERT_MESSAGES = Statement(sa.insert(messages))


def find(connection: sa.Connection, tenant: str, conversation_id: str, request_id: str) -> StoredTurn | None:
    """The turn of that request id; None where the tenant has no such one."""
    row = _FIND.first(
        connection, {"tenant": tenant, "conversation_id": conversation_id, "request_id": request_id}
    )
    return None if row is None else StoredTurn(*row)


def begin(
    connection: sa.Connection, new: NewTurn, *, interrupted: ChatEvent, stale_ms: int, most_history: int
) -> Begun | StoredTurn | Busy:
    """Begins a turn and stores its question; makes the conversation where it is new.

    The StoredTurn where that request id has one already. A running turn whose worker beat last more than
    `stale_ms` ago is ended with the event `interrupted` first: it must not lock its conversation.
    """
    key = {"tenant": new.tenant, "conversation_id": new.conversation_id}
    while True:
        there = _FIND_OR_RUNNING.all(connection, {**key, "request_id": new.request_id})
        found = [StoredTurn(*row) for row in there]
        for stored in found:
            if stored.request_id == new.request_id:
                return stored
        for running in found:
            if is_alive(connection, running.owner, stale_ms):
                return Busy(running.request_id)
            close_ownerless(
                connection,
                new.tenant,
                running.turn_id,
                running.owner,
                status="interrupted",
                event=interrupted,
                now_ms=new.now_ms,
            )
        said = [Message(role="user", content=new.question)]
        if new.earlier and connection.execute(_KNOWN, key).first() is None:
            said[:0] = new.earlier
        title = next(message.content for message in said if message.role == "user")
        (next_position,) = _CONVERSATION.one(
            connection,
            {**key, "title": title.strip()[:80], "now_ms": new.now_ms, "added": len(said) + 1},
        )
        begun = _BEGIN.first(
            connection,
            {
                **key,
                "request_id": new.request_id,
                "fingerprint": new.fingerprint,
                "worker": new.worker,
                "options": new.options,
                "position": next_position - 1,
                "now_ms": new.now_ms,
            },
        )
        if begun is not None:
            break
        # Another process began one since we looked: look again.
    first = next_position - 1 - len(said)
    (turn_id,) = begun
    _INSERT_MESSAGES.many(
        connection,
        [
            {
                **key,
                "position": first + at,
                "created_at_ms": new.now_ms,
                "role": message.role,
                "content": message.content,
                "request_id": new.request_id,
                "status": "complete",
            }
            for at, message in enumerate(said)
        ],
    )
    if first == 0:  # the conversation is new
        return Begun(turn_id, said[:-1])
    return Begun(
        turn_id, history(connection, new.tenant, new.conversation_id, before=first, most=most_history)
    )


def history(
    connection: sa.Connection, tenant: str, conversation_id: str, *, before: int, most: int
) -> list[Message]:
    """The last `most` messages before position `before`, the oldest first."""
    rows = _HISTORY.all(
        connection, {"tenant": tenant, "conversation_id": conversation_id, "before": before, "most": most}
    )
    return [Message(role=role, content=content) for role, content in reversed(rows)]


def withdraw(
    connection: sa.Connection, tenant: str, conversation_id: str, request_id: str, worker: str
) -> None:
    """Takes back a turn that failed before its first event, so that it can be asked again."""
    key = {"tenant": tenant, "conversation_id": conversation_id}
    lock(connection, tenant, conversation_id)
    gone = connection.execute(
        sa.delete(turns).filter_by(**key, request_id=request_id, owner=worker, status="running", last_seq=0)
    )
    if gone.rowcount == 0:
        return
    connection.execute(sa.delete(messages).filter_by(**key, request_id=request_id))
    if connection.execute(sa.select(turns.c.turn_id).filter_by(**key).limit(1)).first() is None:
        connection.execute(sa.delete(conversations).filter_by(**key))


def lock(connection: sa.Connection, tenant: str, conversation_id: str) -> bool:
    """Keeps others from beginning a turn in a conversation until the commit. False where there is none."""
    row = sa.select(conversations.c.tenant).filter_by(tenant=tenant, conversation_id=conversation_id)
    return connection.execute(row.with_for_update()).first() is not None

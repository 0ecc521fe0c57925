"""Turns: found, read again, taken back."""

from __future__ import annotations

from dataclasses import dataclass, fields

import sqlalchemy as sa

from weft.v1.common_pb2 import Message
from weftd.stores.records.conversation_tables import conversations, messages, turns
from weftd.stores.records.statement import Statement

__all__ = ["TURN_COLUMNS", "StoredTurn", "find", "history", "lock", "withdraw"]


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


TURN_COLUMNS = [turns.c[each.name] for each in fields(StoredTurn)]
_FIND = Statement(
    sa.select(*TURN_COLUMNS).where(
        turns.c.tenant == sa.bindparam("tenant"),
        turns.c.conversation_id == sa.bindparam("conversation_id"),
        turns.c.request_id == sa.bindparam("request_id"),
    )
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


def find(connection: sa.Connection, tenant: str, conversation_id: str, request_id: str) -> StoredTurn | None:
    """The turn of that request id; None where the tenant has no such one."""
    row = _FIND.first(
        connection, {"tenant": tenant, "conversation_id": conversation_id, "request_id": request_id}
    )
    return None if row is None else StoredTurn(*row)


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

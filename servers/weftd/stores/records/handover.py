"""Turns whose reader, canceller or worker is in another process than the one that runs them."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Message
from weftd.stores.records.conversation_tables import chat_workers, turn_events, turns
from weftd.stores.records.turn_log import close_ownerless, events_after, text_so_far
from weftd.stores.records.turns import StoredTurn, find, history
from weftd.stores.records.workers import clock_ms, is_alive

__all__ = ["TakenOver", "close_orphans", "expire_events", "look", "release", "request_cancel", "take_over"]

_BATCH = 500


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A turn as far as its worker had come, what was asked, and what was said before."""

    turn_id: int
    last_seq: int
    text: str
    question: str
    history: list[Message]


def take_over(
    connection: sa.Connection, key: tuple[str, str, str], worker: str, *, stale_ms: int, most_history: int
) -> TakenOver | None:
    """Makes `worker` the owner of a running turn whose owner beat last more than `stale_ms` ago.

    `key` is tenant, conversation and request id. None where the owner is alive, or someone was quicker.
    """
    tenant, conversation_id, _ = key
    stored = find(connection, *key)
    if stored is None or is_alive(connection, stored.owner, stale_ms):
        return None
    taken = connection.execute(
        sa.update(turns)
        .filter_by(turn_id=stored.turn_id, owner=stored.owner, status="running")
        .values(owner=worker)
        .returning(turns.c.last_seq)
    ).scalar()
    if taken is None:
        return None
    asked = history(connection, tenant, conversation_id, before=stored.position, most=most_history + 1)
    text = text_so_far(connection, stored.turn_id)
    return TakenOver(stored.turn_id, taken, text, asked[-1].content, asked[:-1])


def look(
    connection: sa.Connection,
    tenant: str,
    conversation_id: str,
    request_id: str,
    *,
    after_seq: int,
    most: int,
    stale_ms: int,
) -> tuple[StoredTurn | None, list[ChatEvent], bool]:
    """A turn, its next events, and whether a living worker runs it."""
    # The turn first: when it has ended, all its events are there.
    stored = find(connection, tenant, conversation_id, request_id)
    if stored is None:
        return None, [], False
    alive = stored.status == "running" and is_alive(connection, stored.owner, stale_ms)
    return stored, events_after(connection, stored.turn_id, after_seq, most), alive


def release(connection: sa.Connection, worker: str, turn_ids: list[int]) -> None:
    """Leaves running turns of `worker` to whoever is asked for them next."""
    connection.execute(
        sa.update(turns)
        .where(turns.c.turn_id.in_(turn_ids), turns.c.owner == worker, turns.c.status == "running")
        .values(owner="")
    )


def request_cancel(
    connection: sa.Connection,
    tenant: str,
    conversation_id: str,
    request_id: str,
    *,
    event: ChatEvent,
    stale_ms: int,
    now_ms: int,
) -> str | None:
    """Asks the worker of a turn to cancel it; ends it here, with `event`, where that worker is gone.

    "asked", "cancelled", or "ended" where it had ended before; None where there is no such turn.
    """
    turn = find(connection, tenant, conversation_id, request_id)
    if turn is None:
        return None
    if turn.status != "running":
        return "ended"
    if not is_alive(connection, turn.owner, stale_ms):
        closed = close_ownerless(
            connection, tenant, turn.turn_id, turn.owner, status="cancelled", event=event, now_ms=now_ms
        )
        if closed:
            return "cancelled"
    connection.execute(
        sa.update(turns).filter_by(turn_id=turn.turn_id, status="running").values(cancel_requested=True)
    )
    return "asked"


def close_orphans(connection: sa.Connection, *, event: ChatEvent, older_ms: int, stale_ms: int) -> int:
    """Ends as interrupted what was begun more than `older_ms` ago, has no living worker, and nobody took."""
    now = clock_ms(connection)
    orphans = connection.execute(
        sa.select(turns.c.tenant, turns.c.turn_id, turns.c.owner)
        .select_from(turns.outerjoin(chat_workers, turns.c.owner == chat_workers.c.worker_id))
        .where(
            turns.c.status == "running",
            turns.c.started_at_ms < now - older_ms,
            sa.func.coalesce(chat_workers.c.beat_at_ms, 0) < now - stale_ms,
        )
        .limit(_BATCH)
    ).all()
    return sum(
        close_ownerless(connection, *orphan, status="interrupted", event=event, now_ms=now)
        for orphan in orphans
    )


def expire_events(connection: sa.Connection, before_ms: int) -> int:
    """Deletes the events of turns that ended before `before_ms`; the messages stay. How many turns."""
    expired = (
        connection.execute(
            sa.select(turns.c.turn_id)
            .where(turns.c.replayable, turns.c.ended_at_ms < before_ms)
            .order_by(turns.c.ended_at_ms)
            .limit(_BATCH)
        )
        .scalars()
        .all()
    )
    if expired:
        connection.execute(sa.delete(turn_events).where(turn_events.c.turn_id.in_(expired)))
        connection.execute(sa.update(turns).where(turns.c.turn_id.in_(expired)).values(replayable=False))
    return len(expired)

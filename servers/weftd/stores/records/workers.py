"""Heartbeats of the processes that run turns or jobs. Times are by the clock of the database."""

from __future__ import annotations

import time

import sqlalchemy as sa

from weftd.stores.records.conversation_tables import chat_workers, turns

__all__ = [
    "beat",
    "beat_again",
    "clock_ms",
    "forget_workers",
    "give_up",
    "holds",
    "is_alive",
    "retire",
    "running_of",
]


def clock_ms(connection: sa.Connection) -> int:
    """Milliseconds since 1970 that all who use this database agree on."""
    if connection.dialect.name == "sqlite":
        return time.time_ns() // 1_000_000
    now = sa.text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    return int(connection.execute(now).scalar_one())


def beat(connection: sa.Connection, worker: str) -> None:
    """Says that `worker` is alive."""
    now = clock_ms(connection)
    updated = connection.execute(
        sa.update(chat_workers).where(chat_workers.c.worker_id == worker).values(beat_at_ms=now)
    )
    if updated.rowcount == 0:
        connection.execute(sa.insert(chat_workers).values(worker_id=worker, beat_at_ms=now))


def beat_again(connection: sa.Connection, worker: str) -> bool:
    """The next beat of a worker that beat before. False where it was given up meanwhile."""
    return (
        connection.execute(
            sa.update(chat_workers)
            .where(chat_workers.c.worker_id == worker)
            .values(beat_at_ms=clock_ms(connection))
        ).rowcount
        == 1
    )


def give_up(connection: sa.Connection, worker: str, stale_ms: int) -> bool:
    """Whether `worker` is gone: never heard of, or not for `stale_ms`. From then on it `holds` nothing."""
    if is_alive(connection, worker, stale_ms):
        return False
    connection.execute(sa.delete(chat_workers).where(chat_workers.c.worker_id == worker))
    return True


def holds(connection: sa.Connection, worker: str) -> bool:
    """Whether `worker` was not given up; nobody gives it up before this transaction ends."""
    row = sa.select(chat_workers.c.worker_id).where(chat_workers.c.worker_id == worker)
    return connection.execute(row.with_for_update(read=True, key_share=True)).first() is not None


def is_alive(connection: sa.Connection, worker: str, stale_ms: int) -> bool:
    """Whether `worker` beat within the last `stale_ms`."""
    at = connection.execute(
        sa.select(chat_workers.c.beat_at_ms).where(chat_workers.c.worker_id == worker)
    ).scalar()
    return at is not None and clock_ms(connection) - int(at) < stale_ms


def running_of(connection: sa.Connection, worker: str) -> dict[int, bool]:
    """The turns that `worker` owns: id → whether someone asked for it to be cancelled."""
    rows = connection.execute(
        sa.select(turns.c.turn_id, turns.c.cancel_requested).where(
            turns.c.owner == worker, turns.c.status == "running"
        )
    )
    return {row.turn_id: row.cancel_requested for row in rows}


def retire(connection: sa.Connection, worker: str) -> None:
    """Takes a worker that stops out of the list and leaves its running turns to whoever is asked next."""
    connection.execute(
        sa.update(turns).where(turns.c.owner == worker, turns.c.status == "running").values(owner="")
    )
    connection.execute(sa.delete(chat_workers).where(chat_workers.c.worker_id == worker))


def forget_workers(connection: sa.Connection, dead_ms: int) -> None:
    """Removes the workers that have not beaten for `dead_ms`."""
    connection.execute(
        sa.delete(chat_workers).where(chat_workers.c.beat_at_ms < clock_ms(connection) - dead_ms)
    )

"""Months of messages. On PostgreSQL each is a partition, made before it is needed; SQLite has one table."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

__all__ = ["make_message_months"]

# Any number will do, as long as nobody else takes it: it keeps two processes from making one partition.
_LOCK = 0x57454654_0001


def make_message_months(connection: sa.Connection, now_ms: int) -> None:
    """Makes the partitions of this month (UTC) and the two after, where they are missing."""
    if connection.dialect.name != "postgresql":
        return
    first = datetime.fromtimestamp(now_ms / 1000, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    months = [first]
    for _ in range(3):
        months.append(_next_month(months[-1]))
    names = [f"messages_{month:%Y_%m}" for month in months]
    present = set(
        connection.execute(
            sa.text("SELECT relname FROM pg_class WHERE relname = ANY(:names) AND relkind = 'r'"),
            {"names": names[:-1]},
        ).scalars()
    )
    if present.issuperset(names[:-1]):
        return
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    for name, start, end in zip(names, months, months[1:], strict=False):
        connection.exec_driver_sql(
            f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF messages"
            f" FOR VALUES FROM ({_ms(start)}) TO ({_ms(end)})"
        )


def _next_month(month: datetime) -> datetime:
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000

"""Connections to the records database, as each of the two kinds wants them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

__all__ = ["NOTICE_SILENCE", "make_engine"]

_BUSY_TIMEOUT_S = 10
# libpq: a server that fell silent, with its machine or its network, is noticed within 20 s, not after hours.
NOTICE_SILENCE = {
    "connect_timeout": 3,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}


def make_engine(url: sa.URL, connections: int) -> sa.Engine:
    """At most so many at once."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"options": "-c statement_timeout=30000", **NOTICE_SILENCE},
        )
    engine = sa.create_engine(
        url,
        # As psycopg has them: a Statement's parameters have names.
        paramstyle="named",
        pool_size=connections,
        max_overflow=0,
        poolclass=sa.QueuePool,
        # An error that is told must not tell what was to be stored.
        hide_parameters=True,
        # The driver begins no transaction by itself: the writer begins its own, a reader needs none.
        connect_args={
            "check_same_thread": False,
            "isolation_level": None,
            "timeout": _BUSY_TIMEOUT_S,
            # A statement for so and so many rows is one of its own.
            "cached_statements": 256,
        },
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # What is deleted is overwritten: people ask for every trace to go.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "secure_delete=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine

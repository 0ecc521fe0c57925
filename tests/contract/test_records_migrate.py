"""The schema: made from nothing by several at once, equal to the tables of the code, never older than it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from tests.servers.postgres import Postgres
from weftd.stores.records import conversation_tables
from weftd.stores.records.migrate import NewerDatabase, migrate
from weftd.stores.records.partitions import make_message_months


def test_several_processes_may_migrate_at_once(empty_database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [empty_database] * 4))
    migrate(empty_database)
    with sa.create_engine(empty_database).connect() as connection:
        assert sa.inspect(connection).has_table("turns")


def test_the_migrations_make_the_tables_of_the_code(empty_database: str) -> None:
    migrate(empty_database)
    ours = set(conversation_tables.conversations.metadata.tables)

    def ours_only(name: str | None, kind: str, _parents: object) -> bool:
        return kind != "table" or name in ours

    with sa.create_engine(empty_database).connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": ours_only})
        assert compare_metadata(context, conversation_tables.conversations.metadata) == []


def test_a_newer_database_is_refused_with_what_to_do(empty_database: str) -> None:
    migrate(empty_database)
    with sa.create_engine(empty_database).begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerDatabase, match=r"newer version of Weft \(revision 9999\)"):
        migrate(empty_database)


def test_messages_have_a_partition_for_each_month(postgres: Postgres) -> None:
    database = postgres.database()
    migrate(database)
    engine = sa.create_engine(database)
    now = datetime.now(UTC)
    december = int(datetime(now.year + 1, 12, 31, 23, 59, tzinfo=UTC).timestamp() * 1000)
    with engine.begin() as connection:
        for _ in range(2):
            make_message_months(connection, december)
        names = set(
            connection.execute(
                sa.text(
                    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'messages'::regclass"
                )
            ).scalars()
        )
        message = {
            "tenant": "t",
            "conversation_id": "c",
            "position": 0,
            "role": "user",
            "content": "?",
            "request_id": "r",
            "status": "complete",
        }
        for at_ms in (time.time_ns() // 1_000_000, december, december + 60_000):
            connection.execute(sa.insert(conversation_tables.messages).values(**message, created_at_ms=at_ms))
    assert {
        f"messages_{now:%Y_%m}",
        f"messages_{now.year + 1}_12",
        f"messages_{now.year + 2}_01",
        f"messages_{now.year + 2}_02",
    } <= names

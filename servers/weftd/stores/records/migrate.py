"""Brings a database to the schema that this code knows."""

from __future__ import annotations

import time
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

from weftd.stores.records.partitions import make_message_months

__all__ = ["NewerDatabase", "migrate"]

# Any number: only one process at a time migrates a PostgreSQL database.
_LOCK = 0x57454654_0000
_WAIT_S = 60


class NewerDatabase(RuntimeError):
    """The database was made by a newer version of the program."""


def migrate(url: str) -> None:
    """Brings the database at `url` (as `Records` takes it) to the newest schema; blocking.

    Makes what is missing, changes nothing that is there already. Several processes may call it at
    once: one migrates, the others wait for it. NewerDatabase where the database is ahead of this code;
    SQLAlchemy's OperationalError where it cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    engine = _make_engine(sa.make_url(url))
    try:
        with engine.connect() as connection, connection.begin():
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            scripts = ScriptDirectory.from_config(config)
            known = {script.revision for script in scripts.walk_revisions()}
            present = MigrationContext.configure(connection).get_current_heads()
            unknown = sorted(set(present) - known)
            if unknown:
                raise NewerDatabase(
                    f"The database {engine.url.database} was made by a newer version of Weft "
                    f"(revision {', '.join(unknown)}). Install that version, or restore an older backup."
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            make_message_months(connection, time.time_ns() // 1_000_000)
    finally:
        engine.dispose()


def _make_engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"connect_timeout": 5})
    # No transaction of the driver's own: it would commit before each change of the schema.
    engine = sa.create_engine(
        url, poolclass=sa.NullPool, connect_args={"isolation_level": None, "timeout": _WAIT_S}
    )
    give_up_at = time.monotonic() + _WAIT_S
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                connection.rollback()
            return engine
        except OperationalError as error:
            # Two that change a new database's mode at once: SQLite tells one of them without waiting.
            if "locked" not in str(error.orig) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)

"""One writer that commits in groups, and a small pool of readers.

Writes of many callers queue up while a commit runs and are committed together, so a commit costs a
turn a share of one. Synchronous SQLAlchemy on threads is used because it costs less than half the CPU of
its asyncio twin.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from weft.v1 import error_reason_pb2
from weftd.errors import Unavailable
from weftd.stores.records.queued import BatchOperation, Operation, OperationQueue, Queued, deliver
from weftd.stores.records.statement import Statement

__all__ = ["NOTICE_SILENCE", "BatchOperation", "Operation", "Records"]

P = TypeVar("P")
T = TypeVar("T")

_GROUP_LIMIT = 256
_BUSY_TIMEOUT_S = 10
_TURN_LIMIT_S = 1.0
_TURN_POLL_S = 0.0005
# libpq: a server that fell silent, with its machine or its network, is noticed within 20 s, not after hours.
NOTICE_SILENCE = {
    "connect_timeout": 3,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
# Threads that read. SQLite answers at once: several only fight over the interpreter, and read half as much.
_SQLITE_READERS = 1
_READERS = 4
_BEGIN = Statement(sa.text("BEGIN IMMEDIATE"))


class Records:
    """A database of records.

    `url` is an SQLAlchemy URL: `sqlite:///path` or `postgresql+psycopg://…`. An operation is a function of
    a connection; it runs on another thread, must do nothing but talk to the database, and may be run a
    second time after a rollback. All calls raise what the operation raises, and Unavailable
    (BACKEND_UNAVAILABLE) when the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        readers = _SQLITE_READERS if self._sqlite else _READERS
        self._engine = _make_engine(self.url, readers + 1)
        self._durable = self._engine
        if self._sqlite:
            self._durable = _make_engine(self.url, 1, synchronous="FULL")
        self._turn = _open_turn(self.url) if self._sqlite else None
        self._writes, self._reads = OperationQueue(), OperationQueue()
        self._writer = threading.Thread(target=self._write_groups, name="records-write", daemon=True)
        self._readers = [
            threading.Thread(target=self._read_groups, name="records-read", daemon=True)
            for _ in range(readers)
        ]
        for thread in (self._writer, *self._readers):
            thread.start()

    @property
    def address(self) -> str:
        """Where the database is, without user or password."""
        return self.url.database or "" if self._sqlite else f"{self.url.host}:{self.url.port or 5432}"

    @property
    def writes_waiting(self) -> int:
        """Writes that wait for the writer, those of its running group not counted; for any thread."""
        return len(self._writes)

    @property
    def reads_waiting(self) -> int:
        """Reads that wait for a reader; for any thread."""
        return len(self._reads)

    async def write(self, operation: Operation[T], *, durable: bool = False) -> T:
        """Runs `operation` in a transaction and returns its result once that is committed.

        `durable` also waits until the commit is on the disk itself (SQLite otherwise keeps it over a
        killed process, not over a power cut). ResourceExhausted when the queue is full.
        """
        return await self._writes.put(lambda connection, _: [operation(connection)], None, durable)

    async def write_batched(self, operation: BatchOperation[P, T], item: P, *, durable: bool = False) -> T:
        """As `write`, for an operation on many items at once, which returns a result for each.

        It is run once for the items of all callers that wait with the same operation (an equal one: not a
        `lambda` or `partial` made for the call), in the order in which they came: a statement for many turns
        costs little more than one for a single turn.
        """
        return await self._writes.put(operation, item, durable)

    async def read(self, operation: Operation[T]) -> T:
        """Runs `operation` on a reader and returns its result; it sees all that was committed before.

        ResourceExhausted when the queue is full.
        """
        return await self._reads.put(lambda connection, _: [operation(connection)], None)

    async def ping(self) -> None:
        """Raises Unavailable when the database does not answer."""
        await self.read(lambda connection: connection.execute(sa.select(1)).scalar_one())

    async def close(self) -> None:
        """Commits what is queued, then closes all connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writes.close()
        for _ in self._readers:
            self._reads.close()
        for thread in (self._writer, *self._readers):
            thread.join()
        self._engine.dispose()
        self._durable.dispose()
        if self._turn is not None:
            os.close(self._turn)

    def _read_groups(self) -> None:
        # Each reader takes its share of what waits: to be woken for each costs more than to read it.
        for group in self._reads.groups(lambda: 1 + len(self._reads) // len(self._readers)):
            deliver(group, [self._read(each) for each in group])

    def _read(self, read: Queued) -> Any:
        """The result or the exception."""
        try:
            with self._engine.connect() as connection:
                return read.operation(connection, [read.item])[0]
        except DBAPIError as error:
            return self._translate(error)
        except PoolTimeout:
            return self._unavailable()
        except Exception as error:
            return error

    def _write_groups(self) -> None:
        for group in self._writes.groups(self._await_turn):
            try:
                results = self._commit(group)
            finally:
                self._pass_turn()
            deliver(group, results)

    def _await_turn(self) -> int:
        """How many writes the next group may have, once other processes let this one write.

        SQLite has one writer, and one that finds it at work sleeps, longer each time: two busy processes
        together write no more than one. This lock saves time only, for SQLite has its own: where another
        process is stopped with it, or the file system has none, the writer does without.
        """
        give_up_at = time.monotonic() + _TURN_LIMIT_S
        while self._turn is not None and time.monotonic() < give_up_at:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_TURN_POLL_S)
            except OSError:
                break
        return _GROUP_LIMIT

    def _pass_turn(self) -> None:
        if self._turn is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _commit(self, group: Sequence[Queued]) -> list[Any]:
        """The result or the exception of each write of the group."""
        try:
            return self._transact(group)
        except Exception as error:
            if len(group) == 1:
                return [self._translate(error) if isinstance(error, DBAPIError) else error]
        # One of them failed: each gets a transaction of its own.
        return [result for write in group for result in self._commit([write])]

    def _transact(self, group: Sequence[Queued]) -> list[Any]:
        engine = self._durable if any(write.durable for write in group) else self._engine
        with engine.connect() as connection, connection.begin():
            if self._sqlite:
                _BEGIN.all(connection, {})
            return _run_batches(connection, group)

    def _translate(self, error: DBAPIError) -> Exception:
        lost = error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
        return self._unavailable() if lost else error

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The records database ({self.address}) does not answer. Try again in a moment.",
            metadata={"backend": "records"},
        )


def _run_batches(connection: sa.Connection, group: Sequence[Queued]) -> list[Any]:
    """Runs each operation once, on all its items; the results in the order of the group."""
    batches: dict[BatchOperation[Any, Any], list[int]] = {}
    for at, write in enumerate(group):
        batches.setdefault(write.operation, []).append(at)
    results: list[Any] = [None] * len(group)
    for operation, places in batches.items():
        returned = operation(connection, [group[at].item for at in places])
        for at, result in zip(places, returned, strict=True):
            results[at] = result
    return results


def _open_turn(url: sa.URL) -> int:
    """The file that the writers of all processes lock in turn, beside the database."""
    return os.open(f"{url.database}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _make_engine(url: sa.URL, connections: int, *, synchronous: str = "NORMAL") -> sa.Engine:
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
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "secure_delete=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine

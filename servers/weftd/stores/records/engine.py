"""One writer that commits in groups, and a small pool of readers.

Writes of many callers queue up while a commit runs and are committed together, so a commit costs a
turn a share of one. Synchronous SQLAlchemy on threads is used because it costs less than half the CPU of
its asyncio twin.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from weft.v1 import error_reason_pb2
from weftd.errors import Unavailable
from weftd.stores.records.commit import GROUP_LIMIT, Committer, nothing
from weftd.stores.records.connect import make_engine
from weftd.stores.records.queued import BatchOperation, Operation, OperationQueue, Queued, deliver
from weftd.stores.records.write_process import WriteProcess

__all__ = ["BatchOperation", "Operation", "Records"]

P = TypeVar("P")
T = TypeVar("T")

# Threads that read. SQLite answers at once: several only fight over the interpreter, and read half as much.
_SQLITE_READERS = 1
_READERS = 4


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
        self._engine = make_engine(self.url, readers)
        self._committer = Committer(self.url)
        self._process: WriteProcess | None = None
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
        """Writes that wait for the writer; those of its running group count only where it is a process."""
        return len(self._writes) + (self._process.waiting if self._process else 0)

    @property
    def writer_pid(self) -> int | None:
        """Of the process that commits for this one; None while there is none."""
        return None if self._process is None else self._process.pid

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
        if self._process is None or not self._process.ready:
            return await self._writes.put(operation, item, durable)
        try:
            return await self._process.put(operation, item, durable)
        except DBAPIError as error:
            raise self._told(error) from None

    def write_apart(self) -> None:
        """From now on a process of its own commits what this event loop writes with `write_batched`.

        Operations, items and results are pickled; while that process is gone they are committed here.
        Nothing changes for PostgreSQL, whose driver does not keep the interpreter waiting.
        """
        if self._sqlite and self.url.password is None:  # anyone may read a command line
            self._process = WriteProcess(str(self.url), self._unavailable)

    async def settle(self) -> None:
        """Returns when every `write_batched` has its result that was committed before."""
        await self.write_batched(nothing, None)

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
        try:
            if self._process is not None:
                await self._process.close()
        finally:
            await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writes.close()
        for _ in self._readers:
            self._reads.close()
        for thread in (self._writer, *self._readers):
            thread.join()
        self._engine.dispose()
        self._committer.close()

    def _read_groups(self) -> None:
        # Each reader takes its share of what waits: to be woken for each costs more than to read it.
        for group in self._reads.groups(lambda: 1 + len(self._reads) // len(self._readers)):
            deliver(group, [self._read(each) for each in group])

    def _read(self, read: Queued) -> Any:
        """The result or the exception."""
        try:
            with self._engine.connect() as connection:
                return read.operation(connection, [read.item])[0]
        except Exception as error:
            return self._told(error)

    def _write_groups(self) -> None:
        for group in self._writes.groups(self._await_turn):
            try:
                results = self._committer.commit(group)
            finally:
                self._committer.pass_turn()
            deliver(group, [self._told(result) for result in results])

    def _await_turn(self) -> int:
        """How many writes the next group may have, once other writers let this one write."""
        self._committer.await_turn()
        return GROUP_LIMIT

    def _told(self, result: Any) -> Any:
        """As it is; but what the database did not answer to is Unavailable."""
        match result:
            case DBAPIError() if result.connection_invalidated:
                return self._unavailable()
            case PoolTimeout() | OperationalError() | InterfaceError():
                return self._unavailable()
        return result

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The records database ({self.address}) does not answer. Try again in a moment.",
            metadata={"backend": "records"},
        )

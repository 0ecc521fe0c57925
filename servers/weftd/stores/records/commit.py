"""Writes of many callers, committed together: a commit costs each of them a share of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from weftd.stores.records.connect import make_engine
from weftd.stores.records.queued import BatchOperation, Write
from weftd.stores.records.statement import Statement

__all__ = ["GROUP_LIMIT", "Committer", "nothing"]

GROUP_LIMIT: Final = 256

_TURN_LIMIT_S = 0.3
_TURN_POLL_S = 0.0005
_BEGIN = Statement(sa.text("BEGIN IMMEDIATE"))
# FULL keeps a commit over a power cut, NORMAL over a killed process.
_SYNCHRONOUS = {
    durable: Statement(sa.text(f"PRAGMA synchronous={level}"))
    for durable, level in ((False, "NORMAL"), (True, "FULL"))
}


class Committer:
    """One of those that write to the database, for one thread."""

    def __init__(self, url: sa.URL) -> None:
        self._sqlite = url.get_backend_name() == "sqlite"
        self._engine = make_engine(url, 1)
        self._kept: sa.Connection | None = None
        self._durable = False
        self._turn: int | None = None
        if self._sqlite:
            # The file that all who write lock in turn, beside the database.
            self._turn = os.open(f"{url.database}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def await_turn(self) -> None:
        """Returns once the others let this one write; `pass_turn` lets them again.

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

    def pass_turn(self) -> None:
        if self._turn is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._turn, fcntl.LOCK_UN)

    def commit(self, group: Sequence[Write]) -> list[Any]:
        """The result of each write of the group, or the exception that it raised."""
        try:
            return self._transact(group)
        except Exception as error:
            if len(group) == 1 or _is_silence(error):
                return [error] * len(group)
        # One of them failed, or two and another process were in each other's way.
        half = len(group) // 2
        return self.commit(group[:half]) + self.commit(group[half:])

    def close(self) -> None:
        self._drop()
        self._engine.dispose()
        if self._turn is not None:
            os.close(self._turn)

    def _transact(self, group: Sequence[Write]) -> list[Any]:
        with self._connection() as connection, connection.begin():
            if self._sqlite:
                self._begin(connection, any(write.durable for write in group))
            return _run_batches(connection, group)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sa.Connection]:
        """SQLite's is kept while all goes well: a pool takes as long to lend it as a statement takes."""
        if not self._sqlite:
            with self._engine.connect() as connection:
                yield connection
            return
        if self._kept is None:
            self._kept, self._durable = self._engine.connect(), False
        try:
            yield self._kept
        except BaseException:
            # SQLAlchemy does not roll back what failed to commit; the pool does.
            self._drop()
            raise

    def _drop(self) -> None:
        """The next connection has its settings anew."""
        if self._kept is not None:
            self._kept.invalidate()
            self._kept.close()
            self._kept = None

    def _begin(self, connection: sa.Connection, durable: bool) -> None:
        # One connection for both: what another one commits empties its cache.
        if durable != self._durable:
            _SYNCHRONOUS[durable].all(connection, {})
            self._durable = durable
        _BEGIN.all(connection, {})


def _run_batches(connection: sa.Connection, group: Sequence[Write]) -> list[Any]:
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


def nothing(_connection: sa.Connection, items: Sequence[None]) -> Sequence[None]:
    """An operation that does nothing: its result comes after those of the ones before."""
    return items


def _is_silence(error: Exception) -> bool:
    """Whether the database did not answer: then it is not asked again for each write."""
    return isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) is None

"""Writes of many callers, committed together: a commit costs each of them a share of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
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


class Committer:
    """One of those that write to the database, for one thread."""

    def __init__(self, url: sa.URL) -> None:
        self._sqlite = url.get_backend_name() == "sqlite"
        self._engine = make_engine(url, 1)
        self._durable = self._engine
        self._turn: int | None = None
        if self._sqlite:
            self._durable = make_engine(url, 1, synchronous="FULL")
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
        self._engine.dispose()
        self._durable.dispose()
        if self._turn is not None:
            os.close(self._turn)

    def _transact(self, group: Sequence[Write]) -> list[Any]:
        engine = self._durable if any(write.durable for write in group) else self._engine
        with engine.connect() as connection, connection.begin():
            if self._sqlite:
                _BEGIN.all(connection, {})
            return _run_batches(connection, group)


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

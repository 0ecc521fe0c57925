"""A group of writes in which some fail."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError

from weftd.stores.records.commit import Committer
from weftd.stores.records.queued import Write


@pytest.mark.parametrize("bad", [{7}, {0, 255}, set(range(0, 256, 64))])
def test_the_others_are_committed_in_few_transactions(tmp_path: Path, bad: set[int]) -> None:
    runs: list[int] = []

    def check(_connection: sa.Connection, items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        if found := bad.intersection(items):
            raise ValueError(f"bad: {found}")
        return [item * 2 for item in items]

    committer = Committer(sa.make_url(f"sqlite:///{tmp_path / 'records.db'}"))
    results = committer.commit([Write(check, n, False) for n in range(256)])
    assert [type(result) is int for result in results] == [n not in bad for n in range(256)]
    assert all(result == 2 * n for n, result in enumerate(results) if n not in bad)
    assert len(runs) <= 1 + 16 * len(bad)
    committer.close()


def test_a_database_that_is_locked_is_waited_for_once(tmp_path: Path) -> None:
    runs: list[int] = []

    def locked(_connection: sa.Connection, items: Sequence[int]) -> list[int]:
        runs.append(len(items))
        raise OperationalError("", None, sqlite3.OperationalError("database is locked"))

    committer = Committer(sa.make_url(f"sqlite:///{tmp_path / 'records.db'}"))
    results = committer.commit([Write(locked, n, False) for n in range(256)])
    assert {type(result) for result in results} == {OperationalError}
    assert runs == [256]
    committer.close()


def test_a_commit_that_fails_is_rolled_back_and_what_follows_is_kept_as_asked(tmp_path: Path) -> None:
    def make(connection: sa.Connection, items: Sequence[None]) -> Sequence[None]:
        connection.exec_driver_sql("CREATE TABLE p (id INTEGER PRIMARY KEY)")
        reference = "INTEGER REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED"
        connection.exec_driver_sql(f"CREATE TABLE k (p {reference})")
        return items

    def orphan(connection: sa.Connection, items: Sequence[None]) -> Sequence[None]:
        connection.exec_driver_sql("INSERT INTO k VALUES (99)")
        return items

    def level(connection: sa.Connection, items: Sequence[None]) -> list[int]:
        return [connection.exec_driver_sql("PRAGMA synchronous").scalar_one() for _ in items]

    committer = Committer(sa.make_url(f"sqlite:///{tmp_path / 'records.db'}"))
    committer.commit([Write(make, None, False)])
    for durable, synchronous in ((True, 2), (True, 2), (False, 1)):
        (failed,) = committer.commit([Write(orphan, None, True)])
        assert isinstance(failed, IntegrityError)
        assert committer.commit([Write(level, None, durable)]) == [synchronous]
        assert committer.commit([Write(level, None, not durable)]) == [3 - synchronous]
    committer.close()

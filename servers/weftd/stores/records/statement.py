"""Statements of the hot path, run on the driver's own cursor.

SQLAlchemy takes longer to execute one of these than the database does: it was a seventh of a turn's processor
time. All else goes through it as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

__all__ = ["RowsStatement", "Statement"]

Row: TypeAlias = tuple[Any, ...]

# The driver keeps a statement, with the values it last had, for each number of rows. So there are few of
# those numbers, and much text goes row by row.
_ANY_NUMBER = 16
_MOST_ROWS = 512
_MOST_TEXT = 1 << 16


class Statement:
    """A statement of SQLAlchemy's whose parameters are all named by `bindparam`, or are constants.

    Values go to the driver and come back from it as they are: text, bytes and whole numbers, and for a
    boolean what the database has. Raises `DBAPIError` as SQLAlchemy does.
    """

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement: Final = statement
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def all(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows that it returns; none where it is no query."""
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = self._compile(dialect)
        sql, constants = compiled
        return _execute(connection, sql, {**constants, **parameters})[0]

    def first(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> Row | None:
        """The first row; None where there is none."""
        rows = self.all(connection, parameters)
        return rows[0] if rows else None

    def _compile(self, dialect: sa.Dialect) -> tuple[str, dict[str, Any]]:
        compiled = self._statement.compile(dialect=dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), constants


class RowsStatement:
    """A statement over rows: `{rows}` in `sql` stands for them, each of them written as `row`.

    `row` has a `?` for each value, as `(?, ?, FALSE)`. In a query of `(VALUES {rows})` the columns are
    `column1`, `column2` and so on, for both databases. One statement for many rows, where each would
    otherwise hand the interpreter to another thread and wait to get it back.
    """

    def __init__(self, sql: str, row: str) -> None:
        self._sql: Final = sql
        self._row: Final = row
        self._made: dict[tuple[str, int], str] = {}

    def all(self, connection: sa.Connection, rows: Sequence[Row]) -> list[Row]:
        """What it returns for all of them, in no order; nothing is run where there are none."""
        return [row for returned, _ in self._run(connection, rows) for row in returned]

    def count(self, connection: sa.Connection, rows: Sequence[Row]) -> int:
        """Runs it; how many rows were changed."""
        return sum(changed for _, changed in self._run(connection, rows))

    def _run(self, connection: sa.Connection, rows: Sequence[Row]) -> Iterator[tuple[list[Row], int]]:
        kind = connection.dialect.name
        for chunk in _chunks(rows):
            sql = self._made.get((kind, len(chunk))) or self._make(kind, len(chunk))
            yield _execute(connection, sql, [value for values in chunk for value in values])

    def _make(self, kind: str, count: int) -> str:
        row = self._row if kind == "sqlite" else self._row.replace("?", "%s")
        sql = self._made[kind, count] = self._sql.format(rows=", ".join([row] * count))
        return sql


def _chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    at = 0
    while at < len(rows):
        left = min(len(rows) - at, _MOST_ROWS)
        size = left if left <= _ANY_NUMBER else 1 << (left.bit_length() - 1)
        chunk = rows[at : at + size]
        texts = (value for values in chunk for value in values if isinstance(value, str | bytes))
        if sum(map(len, texts)) > _MOST_TEXT:
            chunk = rows[at : at + 1]
        yield chunk
        at += len(chunk)


def _execute(
    connection: sa.Connection, sql: str, parameters: Mapping[str, Any] | Sequence[Any]
) -> tuple[list[Row], int]:
    """The rows that it returns, and how many it changed."""
    dialect = connection.dialect
    cursor = connection.connection.cursor()
    try:
        cursor.execute(sql, parameters)
        return (list(cursor.fetchall()) if cursor.description else []), cursor.rowcount
    except dialect.loaded_dbapi.Error as error:
        lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql, None, error, dialect.loaded_dbapi.Error, connection_invalidated=lost, dialect=dialect
        ) from error
    finally:
        cursor.close()

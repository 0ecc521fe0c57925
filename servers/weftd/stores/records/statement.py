"""Statements of the hot path, compiled once and run on the driver's own cursor.

SQLAlchemy takes longer to execute one of these than the database does: it was a seventh of a turn's processor
time. All else goes through it as usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

__all__ = ["Statement"]

Row = tuple[Any, ...]


class Statement:
    """A statement of SQLAlchemy's whose parameters are all named by `bindparam`, or are constants.

    Values go to the driver and come back from it as they are: text, bytes and whole numbers, and for a
    boolean what the database has. Raises `DBAPIError` as SQLAlchemy does.
    """

    def __init__(self, statement: sa.ClauseElement) -> None:
        self._statement: Final = statement
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def all(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows."""
        return self._run(connection, parameters)[0]

    def first(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> Row | None:
        """The first row; None where there is none."""
        rows = self._run(connection, parameters)[0]
        return rows[0] if rows else None

    def one(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> Row:
        """The only row of a statement that always has one."""
        (row,) = self._run(connection, parameters)[0]
        return row

    def count(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> int:
        """Runs it; how many rows were changed."""
        return self._run(connection, parameters)[1]

    def many(self, connection: sa.Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Runs it once for each."""
        for each in parameters:
            self._run(connection, each)

    def _run(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> tuple[list[Row], int]:
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = self._compile(dialect)
        sql, constants = compiled
        cursor = connection.connection.cursor()
        try:
            cursor.execute(sql, {**constants, **parameters})
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

    def _compile(self, dialect: sa.Dialect) -> tuple[str, dict[str, Any]]:
        compiled = self._statement.compile(dialect=dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        return str(compiled), constants

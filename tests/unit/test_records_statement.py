"""Statements over many rows, on SQLite."""

from __future__ import annotations

import sqlalchemy as sa

from weftd.stores.records.statement import RowsStatement

INSERT = RowsStatement("INSERT INTO t VALUES {rows}", "(?, ?)")
FIND = RowsStatement("SELECT t.n, t.text FROM (VALUES {rows}) AS v, t WHERE t.n = v.column1", "(?)")


def test_any_number_of_rows_is_written_and_found_by_few_statements() -> None:
    engine = sa.create_engine("sqlite://")
    seen: set[str] = set()
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER, text TEXT)")
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.set_trace_callback(lambda sql: seen.add(str(sql.count("(")) if "INSERT" in sql else ""))
        first = 0
        for size in [*range(40), 255, 256, 1_300]:
            rows = [(n, f"text {n}") for n in range(first, first + size)]
            assert INSERT.count(connection, rows) == size
            assert sorted(FIND.all(connection, [(n,) for n, _ in rows])) == rows
            first += size
    assert len(seen) <= 16 + 5 + 1, "the driver keeps each of them"


def test_much_text_is_not_kept_by_many_statements() -> None:
    engine = sa.create_engine("sqlite://")
    seen: list[str] = []
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER, text TEXT)")
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.set_trace_callback(lambda sql: seen.append(sql[:6]))
        assert INSERT.count(connection, [(n, "x" * 30_000) for n in range(5)]) == 5
    assert seen.count("INSERT") == 4, "three go one by one, the last two together"

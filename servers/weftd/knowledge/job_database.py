"""The connections of the durable job runner to PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy as sa

from weftd.stores.records.connect import NOTICE_SILENCE

__all__ = ["patient_connections"]

_PAUSE_S = 0.25
_PATIENCE_S = 120.0


def patient_connections(url: sa.URL, is_stopping: Callable[[], bool]) -> dict[str, Any]:
    """Arguments of its engine, with which it waits for a server that is away, and goes on once that is back.

    By itself the runner tries again after 1, 2, 4 … 60 s: it sleeps as long again as the server was away.
    """

    def connect() -> psycopg.Connection[Any]:
        give_up_at = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return psycopg.connect(
                    host=url.host,
                    port=url.port,
                    user=url.username,
                    password=url.password,
                    dbname=url.database,
                    **{**NOTICE_SILENCE, **url.query},
                )
            except psycopg.OperationalError:
                if is_stopping() or time.monotonic() > give_up_at:
                    raise
            time.sleep(_PAUSE_S)

    return {"creator": connect}

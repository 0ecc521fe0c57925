"""Who runs jobs: a job process, its heartbeat, and what it may still write."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection

import sqlalchemy as sa
import structlog

from weftd.errors import WeftError, reason_name
from weftd.stores.records import workers
from weftd.stores.records.engine import Records

__all__ = ["GivenUp", "JobWorker"]

log = structlog.get_logger()


class GivenUp(Exception):
    """Others took this worker for dead and have its jobs: it must write to them no more."""


class JobWorker:
    """One job process among those on the same records. Its `id` is new with each start.

    `alone` says that the caller knows of no other living one: then all others are dead. Else a worker is
    dead that has not beaten for `stale_s`; each does every `beat_s`. One that is taken for dead and lives,
    because it was stopped or cut off, learns it from its next beat, and before and after whatever it writes.
    """

    def __init__(
        self, records: Records, *, alone: bool = False, beat_s: float = 1.0, stale_s: float = 5.0
    ) -> None:
        self.id = f"jobs-{uuid.uuid4().hex}"
        self._records = records
        self._alone = alone
        self._beat_s = beat_s
        self._stale_s = stale_s
        self._beating_since = 0.0

    async def begin(self) -> None:
        """The first beat, before any job is taken."""
        await self._records.write(lambda connection: workers.beat(connection, self.id))
        self._beating_since = time.monotonic()

    async def keep_beating(self) -> None:
        """Until cancelled. GivenUp where this worker was."""
        while True:
            await asyncio.sleep(self._beat_s)
            try:
                holds = await self._records.write(lambda connection: workers.beat_again(connection, self.id))
            except WeftError as error:
                log.warning("heartbeat_waits", reason=reason_name(error.reason))
                self._beating_since = time.monotonic()
                continue
            if not holds:
                raise GivenUp

    async def gone(self, others: Collection[str]) -> list[str]:
        """Those of `others` that are dead; what they hold may be taken over."""
        stale_ms = 0 if self._alone else round(self._stale_s * 1000)
        # After an outage all are late: each gets the time to beat again.
        patient = self._alone or time.monotonic() - self._beating_since > self._stale_s

        def operation(connection: sa.Connection) -> list[str]:
            return [
                each
                for each in others
                if each != self.id
                and (patient or not workers.holds(connection, each))
                and workers.give_up(connection, each, stale_ms)
            ]

        return await self._records.write(operation)

    def holds(self, connection: sa.Connection) -> bool:
        """Whether this worker was not given up, until the transaction ends."""
        return workers.holds(connection, self.id)

    async def retire(self) -> None:
        """Leaves what it holds to others at once."""
        try:
            await self._records.write(lambda connection: workers.retire(connection, self.id))
        except WeftError as error:  # then its heartbeat tells them, a little later
            log.warning("worker_not_retired", reason=reason_name(error.reason))

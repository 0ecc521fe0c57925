"""What a worker does beside its turns: it beats, learns which turns it lost, and clears away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import sqlalchemy as sa
import structlog

from weftd.chat.turn import CANCELLED, INTERRUPTED, State, Turn, TurnKey
from weftd.errors import WeftError, reason_name
from weftd.stores.records import handover, workers
from weftd.stores.records.engine import Records
from weftd.stores.records.partitions import make_message_months

__all__ = ["Upkeep"]

_CLEAR_EVERY_S = 60.0
_WORKERS_KEPT_MS = 3_600_000

log = structlog.get_logger()


class Upkeep:
    """For the worker of that name and the turns that it runs; see `ChatTurns`."""

    def __init__(
        self,
        records: Records,
        worker: str,
        running: Mapping[TurnKey, Turn],
        *,
        beat_s: float,
        stale_ms: int,
        replay_kept_ms: int,
        max_turn_ms: int,
    ) -> None:
        self._records = records
        self._worker = worker
        self._running = running
        self._beat_s = beat_s
        self._stale_ms = stale_ms
        self._replay_kept_ms = replay_kept_ms
        self._max_turn_ms = max_turn_ms
        self._strays: set[int] = set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        clear_at = loop.time()
        while True:
            try:
                await self.beat()
                if loop.time() >= clear_at:
                    await self.clear()
                    clear_at = loop.time() + _CLEAR_EVERY_S
            except WeftError as error:
                log.warning("upkeep_waits", reason=reason_name(error.reason))
            except Exception:
                log.exception("upkeep_failed")
            await asyncio.sleep(self._beat_s)

    async def beat(self) -> None:
        """Says that the worker is alive, and hears of turns that were cancelled, deleted or taken over."""
        here = {turn.turn_id: turn for turn in self._running.values() if turn.turn_id}

        def operation(connection: sa.Connection) -> dict[int, bool]:
            workers.beat(connection, self._worker)
            return workers.running_of(connection, self._worker)

        owned = await self._records.write(operation)
        if here.keys() - owned.keys():
            await self._records.settle()  # perhaps it has just ended, and does not know it yet
        for turn_id, turn in here.items():
            if turn_id not in owned:
                if turn.state is State.RUNNING:
                    turn.lose()
            elif owned[turn_id]:
                turn.stop(CANCELLED)
        # Twice in a row owned and not run: its last commit failed, or had an unknown outcome.
        strays = owned.keys() - {turn.turn_id for turn in self._running.values()}
        given_up = sorted(strays & self._strays)
        self._strays = strays - set(given_up)
        if given_up:
            await self._records.write(lambda connection: handover.release(connection, self._worker, given_up))

    async def clear(self) -> None:
        """Deletes events that are kept no longer; ends what nobody came back for; makes partitions."""
        now_ms = time.time_ns() // 1_000_000

        def operation(connection: sa.Connection) -> int:
            make_message_months(connection, now_ms)
            workers.forget_workers(connection, _WORKERS_KEPT_MS)
            handover.close_orphans(
                connection, event=INTERRUPTED.event(), older_ms=self._max_turn_ms, stale_ms=self._stale_ms
            )
            return handover.expire_events(connection, now_ms - self._replay_kept_ms)

        while await self._records.write(operation):
            pass

    async def retire(self) -> None:
        """The worker stops: its turns are for whoever is asked for them."""
        try:
            await self._records.write(lambda connection: workers.retire(connection, self._worker))
        except WeftError as error:  # then its heartbeat tells them, a little later
            log.warning("worker_not_retired", reason=reason_name(error.reason))

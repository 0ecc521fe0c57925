"""Dynamic batching: what waits for a model goes into it together."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE, ERROR_REASON_OVERLOADED
from weftd.errors import ResourceExhausted, Unavailable

T = TypeVar("T")
R = TypeVar("R")

_QUEUE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one batch: at most `size` items, and `bytes` of the longest of them times their number.

    `delay_s` is how long an item may wait, while batches run, for others of its length.
    """

    size: int
    bytes: int
    delay_s: float


@dataclass(eq=False, slots=True)
class _Unit(Generic[T, R]):
    """Items that stay together. `length`: bytes of the longest."""

    items: Sequence[T]
    length: int
    since: float
    done: asyncio.Future[Sequence[R]]
    context: contextvars.Context


class Batcher(Generic[T, R]):
    """Gives `start` batches of what waits, `places` at once. For one event loop.

    An idle place never waits: it takes at once what there is. While all are busy what comes waits; the
    place that gets free takes the shortest and those nearest in length, for padding costs as much as
    text. What has waited for `delay_s` goes first.
    """

    def __init__(
        self,
        start: Callable[[list[T]], asyncio.Future[Sequence[R]]],
        places: int,
        limits: Limits,
        *,
        queue: int = _QUEUE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` runs a batch off the loop, to as many results in their order. `queue`: waiters at most.

        It is called in the context of the one who asked, whose deadline and trace are there; in an empty
        one where several did. What it gives is cancelled when all of them have left, if it is a task.
        """
        self._start = start
        self._places = places
        self._limits = limits
        self._queue = queue
        self._clock = clock
        self._waiting: list[_Unit[T, R]] = []
        self._running: dict[asyncio.Future[Sequence[R]], list[_Unit[T, R]]] = {}

    @property
    def waiting(self) -> int:
        """Units that wait for a place; for any thread."""
        return len(self._waiting)

    async def submit(self, items: Sequence[T], length: int) -> Sequence[R]:
        """The results of `items`, which go into one batch together; `length`: bytes of the longest.

        Cancelled, they leave the queue; a batch that runs goes on for the others in it. Raises
        `ResourceExhausted` at once when the queue is full, and what the batch raised.
        """
        if len(self._waiting) >= self._queue:
            raise _overloaded()
        done: asyncio.Future[Sequence[R]] = asyncio.get_running_loop().create_future()
        unit = _Unit(items, length, self._clock(), done, contextvars.copy_context())
        self._waiting.append(unit)
        self._fill()
        try:
            return await unit.done
        except asyncio.CancelledError:
            self._leave(unit)
            raise

    def _leave(self, unit: _Unit[T, R]) -> None:
        if unit in self._waiting:
            self._waiting.remove(unit)
        for running, batch in self._running.items():
            if (
                unit in batch
                and isinstance(running, asyncio.Task)
                and all(each.done.done() for each in batch)
            ):
                running.cancel()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._places:
            batch = self._next()
            self._waiting = [unit for unit in self._waiting if unit not in batch]
            context = batch[0].context if len(batch) == 1 else contextvars.Context()
            running = context.run(self._start, [item for unit in batch for item in unit.items])
            self._running[running] = batch
            running.add_done_callback(self._finish)

    def _next(self) -> list[_Unit[T, R]]:
        oldest = self._waiting[0]
        is_due = self._clock() - oldest.since >= self._limits.delay_s
        first = oldest if is_due else min(self._waiting, key=lambda unit: unit.length)
        alike = sorted(self._waiting, key=lambda unit: (unit is not first, abs(unit.length - first.length)))
        batch, count, longest = [first], len(first.items), first.length
        for unit in alike[1:]:
            count, longest = count + len(unit.items), max(longest, unit.length)
            if count > self._limits.size or count * longest > self._limits.bytes:
                break
            batch.append(unit)
        return batch

    def _finish(self, running: asyncio.Future[Sequence[R]]) -> None:
        error = _closed() if running.cancelled() else running.exception()
        start = 0
        for unit in self._running.pop(running):
            end = start + len(unit.items)
            if not unit.done.done():  # else its caller has left
                if error is None:
                    unit.done.set_result(running.result()[start:end])
                else:
                    unit.done.set_exception(error)
            start = end
        self._fill()

    async def close(self) -> None:
        """Drops what waits, and waits for what runs; tasks are cancelled."""
        for unit in self._waiting:
            unit.done.set_exception(_closed())
        self._waiting.clear()
        for running in self._running:
            if isinstance(running, asyncio.Task):
                running.cancel()
        if self._running:
            await asyncio.wait(self._running)


def _overloaded() -> ResourceExhausted:
    return ResourceExhausted(
        ERROR_REASON_OVERLOADED, "The model has as much to do as it may queue. Try again in a second."
    )


def _closed() -> Unavailable:
    return Unavailable(
        ERROR_REASON_BACKEND_UNAVAILABLE, "The model's process is stopping. Try again in a second."
    )

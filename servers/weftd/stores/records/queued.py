"""Operations on their way from event loops to the threads that run them, and their results back."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import sqlalchemy as sa
import structlog

from weft.v1 import error_reason_pb2
from weftd.errors import ResourceExhausted

__all__ = [
    "MOST_WAITING",
    "BatchOperation",
    "Operation",
    "OperationQueue",
    "Queued",
    "Write",
    "deliver",
    "overloaded",
    "settle",
]

T = TypeVar("T")
P = TypeVar("P")
Operation = Callable[[sa.Connection], T]
BatchOperation = Callable[[sa.Connection, Sequence[P]], Sequence[T]]

MOST_WAITING: Final = 10_000

log = structlog.get_logger()


@dataclass(slots=True)
class Write:
    """What to run on which item, and whether it must outlive a power cut."""

    operation: BatchOperation[Any, Any]
    item: Any
    durable: bool


@dataclass(slots=True)
class Queued(Write):
    """The same for a read; and where its result goes."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


class OperationQueue:
    """Holds 10,000 operations at most."""

    def __init__(self) -> None:
        # Its `put` and `get` are one step each: a plain Queue's locks are fought over by both threads.
        self._queue: queue.SimpleQueue[Queued | None] = queue.SimpleQueue()

    def __len__(self) -> int:
        """How many wait; for any thread."""
        return self._queue.qsize()

    def put(self, operation: BatchOperation[P, T], item: P, durable: bool = False) -> asyncio.Future[T]:
        """What becomes the item's result. ResourceExhausted where the queue is full."""
        if self._queue.qsize() >= MOST_WAITING:
            raise overloaded()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(Queued(operation, item, durable, loop, future))
        return future

    def groups(self, most: Callable[[], int]) -> Iterator[list[Queued]]:
        """For a thread: what waits, `most()` at a time, until the queue is closed."""
        while (item := self._queue.get()) is not None:
            group = [item]
            for _ in range(most() - 1):
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    self._queue.put(None)  # for the next `get`, after this group
                    break
                group.append(item)
            yield group

    def close(self) -> None:
        """Ends one thread's `groups`, after what was put in before."""
        self._queue.put(None)


def overloaded() -> ResourceExhausted:
    """MOST_WAITING operations wait."""
    return ResourceExhausted(
        error_reason_pb2.ERROR_REASON_OVERLOADED,
        "Too many calls wait for the records database. Try again in a moment.",
    )


def deliver(group: Sequence[Queued], results: Sequence[Any]) -> None:
    """Hands results, or exceptions, to their loops: one wake-up for each loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for each, result in zip(group, results, strict=True):
        by_loop.setdefault(each.loop, []).append((each.future, result))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(settle, settled)
        except RuntimeError:  # that loop is closed: nobody waits any more
            log.debug("records_result_unwanted", operations=len(settled))


def settle(settled: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    """Gives futures of this loop their results, or exceptions; nothing where nobody waits any more."""
    for future, result in settled:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)

"""What goes into a batch together, and who waits for whom: with a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence

import pytest

from weft.v1 import error_reason_pb2
from weftd.errors import ResourceExhausted, Unavailable
from weftd.inference.batching import Batcher, Limits


class Model:
    """Batches that run until they are told to end; a result is its item in capitals."""

    def __init__(self, places: int = 1, size: int = 3, most_bytes: int = 1_000, queue: int = 100) -> None:
        self.now = 0.0
        self.batches: list[list[str]] = []
        self._running: list[asyncio.Future[Sequence[str]]] = []
        limits = Limits(size, most_bytes, 0.1)
        self.batcher: Batcher[str, str] = Batcher(
            self._start, places, limits, queue=queue, clock=lambda: self.now
        )

    def _start(self, batch: list[str]) -> asyncio.Future[Sequence[str]]:
        self.batches.append(batch)
        self._running.append(asyncio.get_running_loop().create_future())
        return self._running[-1]

    async def ask(self, *items: str) -> asyncio.Task[Sequence[str]]:
        """Asks, and goes on once what is asked for runs or waits."""
        task = asyncio.create_task(self.batcher.submit(items, max(map(len, items))))
        await asyncio.sleep(0)
        return task

    async def end(self, error: Exception | None = None) -> None:
        """The oldest batch that runs ends."""
        batch = self.batches[len(self.batches) - len(self._running)]
        running = self._running.pop(0)
        if error is None:
            running.set_result([item.upper() for item in batch])
        else:
            running.set_exception(error)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_an_idle_model_never_waits() -> None:
    model = Model()
    answer = await model.ask("one")
    assert model.batches == [["one"]]
    await model.end()
    assert await answer == ["ONE"]
    await model.ask("two")
    assert model.batches == [["one"], ["two"]]


async def test_each_idle_place_takes_what_there_is() -> None:
    model = Model(places=2)
    await model.ask("one")
    await model.ask("two")
    assert model.batches == [["one"], ["two"]]


async def test_while_a_batch_runs_the_next_fills() -> None:
    model = Model()
    answers = [await model.ask(item) for item in ("one", "two", "six", "ten", "four")]
    assert (model.batches, model.batcher.waiting) == ([["one"]], 4)
    await model.end()
    assert model.batches[1:] == [["two", "six", "ten"]]
    await model.end()
    await model.end()
    assert [await answer for answer in answers] == [["ONE"], ["TWO"], ["SIX"], ["TEN"], ["FOUR"]]


async def test_texts_of_like_length_go_together_the_short_ones_first() -> None:
    model = Model(size=2)
    for item in ("begin", "a very long one", "cat", "a very long two", "mat"):
        await model.ask(item)
    await model.end()
    await model.end()
    assert model.batches[1:] == [["cat", "mat"], ["a very long one", "a very long two"]]


async def test_a_long_one_does_not_hold_the_short_ones() -> None:
    model = Model(most_bytes=12)
    for item in ("begin", "twelve bytes", "cat", "mat"):
        await model.ask(item)
    await model.end()
    await model.end()
    assert model.batches[1:] == [["cat", "mat"], ["twelve bytes"]]


async def test_what_waited_for_the_delay_goes_first() -> None:
    model = Model(size=2)
    await model.ask("begin")
    await model.ask("a long one")
    model.now = 0.09
    for item in ("cat", "mat", "a long two"):
        await model.ask(item)
    model.now = 0.1
    await model.end()
    assert model.batches[1] == ["a long one", "a long two"]


async def test_items_that_were_asked_for_together_stay_together() -> None:
    model = Model()
    await model.ask("begin")
    together = await model.ask("a", "b")
    await model.ask("c", "d")
    alone = await model.ask("e")
    await model.end()
    await model.end()
    assert model.batches[1:] == [["a", "b"], ["c", "d", "e"]]
    assert await together == ["A", "B"]
    await model.end()
    assert await alone == ["E"]


async def test_who_leaves_is_dropped_from_the_queue() -> None:
    model = Model()
    await model.ask("begin")
    leaving, staying = await model.ask("leaving"), await model.ask("staying")
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert model.batcher.waiting == 1
    await model.end()
    assert model.batches[1:] == [["staying"]]
    await model.end()
    assert await staying == ["STAYING"]


async def test_who_leaves_a_running_batch_stops_nobody() -> None:
    model = Model()
    await model.ask("begin")
    leaving, staying = await model.ask("one"), await model.ask("two")
    await model.end()
    leaving.cancel()
    await model.end()
    assert await staying == ["TWO"]
    assert leaving.cancelled()


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    model = Model(queue=2)
    running = await model.ask("running")
    await model.ask("waits")
    await model.ask("waits too")
    with pytest.raises(ResourceExhausted) as refused:
        await model.batcher.submit(["one too many"], 12)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_OVERLOADED
    assert refused.value.retry_after_ms > 0
    await model.end()
    assert await running == ["RUNNING"]
    await model.ask("room again")


async def test_an_error_reaches_everybody_in_the_batch_and_nobody_else() -> None:
    model = Model(size=2)
    await model.ask("begin")
    first, second, other = [await model.ask(item) for item in ("one", "two", "three")]
    await model.end()
    await model.end(RuntimeError("out of memory"))
    for task in (first, second):
        with pytest.raises(RuntimeError, match="out of memory"):
            await task
    await model.end()
    assert await other == ["THREE"]


async def test_closing_waits_for_what_runs_and_refuses_what_waits() -> None:
    model = Model()
    running, waiting = await model.ask("running"), await model.ask("waiting")
    closing = asyncio.create_task(model.batcher.close())
    with pytest.raises(Unavailable):
        await waiting
    assert not closing.done()
    await model.end()
    await closing
    assert (await running, len(model.batches)) == (["RUNNING"], 1)


CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")


class Remote(Model):
    """Its batches are tasks, as calls to a server are."""

    def __init__(self) -> None:
        super().__init__(places=1, size=2)
        self.callers: list[str] = []
        self.cancelled = 0
        self.go_on = asyncio.Event()

    def _start(self, batch: list[str]) -> asyncio.Future[Sequence[str]]:
        self.callers.append(CALLER.get())
        return asyncio.create_task(self._call(batch))

    async def _call(self, batch: list[str]) -> Sequence[str]:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [item.upper() for item in batch]


async def test_a_call_is_on_behalf_of_its_caller_and_one_for_several_of_none() -> None:
    model = Remote()
    for name in ("ann", "bob", "cem"):
        CALLER.set(name)
        await model.ask(name)
    model.go_on.set()
    while len(model.callers) < 2:
        await asyncio.sleep(0)
    assert model.callers == ["ann", "nobody"]


async def test_a_call_that_nobody_waits_for_is_cancelled() -> None:
    model = Remote()
    first = await model.ask("first")
    second, third = await model.ask("second"), await model.ask("third")
    first.cancel()
    while model.batcher.waiting:
        await asyncio.sleep(0)
    assert model.cancelled == 1
    second.cancel()
    await asyncio.sleep(0.01)
    assert model.cancelled == 1  # the third still waits for it
    model.go_on.set()
    assert await third == ["THIRD"]

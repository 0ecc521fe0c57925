"""A load run on several processes as if it were one: each takes a share of the callers, or of the rate."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from weftd.load.run import CannotLoad, Measured, Plan, Run

__all__ = ["Processes", "merged", "shares"]

_TOLD_EVERY_S: Final = 0.2
_START_IN_S: Final = 0.1


def shares(plan: Plan, processes: int) -> list[Plan]:
    """The plan of each process. ValueError where there are fewer callers or requests than processes."""

    def share(whole: int, index: int) -> int:
        return whole // processes + (index < whole % processes)

    fewest = min(
        plan.callers if plan.rate is None else processes,
        processes if plan.requests is None else plan.requests,
    )
    if fewest < processes:
        raise ValueError(f"{processes} processes need as many callers and requests: take fewer processes.")
    return [
        replace(
            plan,
            callers=share(plan.callers, index) if plan.rate is None else plan.callers,
            rate=None if plan.rate is None else plan.rate / processes,
            requests=None if plan.requests is None else share(plan.requests, index),
        )
        for index in range(processes)
    ]


def merged(measured: list[Measured]) -> Measured:
    """What all of them measured; `cpu` is that of the busiest."""
    return Measured(
        turns=[turn for each in measured for turn in each.turns],
        began_s=min(each.began_s for each in measured),
        ended_s=max(each.ended_s for each in measured),
        not_started=sum(each.not_started for each in measured),
        cpu=max(each.cpu for each in measured),
        left=sum(each.left for each in measured),
        stopped=any(each.stopped for each in measured),
    )


class Processes:
    """As `Run`, on `count` processes. They begin together; turns of an open loop come in even steps."""

    def __init__(self, plan: Plan, count: int) -> None:
        self.plan = plan
        self._plans = shares(plan, count)
        self._seen = [(0, 0)] * count
        self._knocked = 0

    def seen(self) -> tuple[int, int]:
        """Turns so far, and how many of them failed."""
        return sum(turns for turns, _ in self._seen), sum(errors for _, errors in self._seen)

    async def measure(self) -> Measured:
        """Asks until the end of the plan or SIGINT. CannotLoad where a first turn is not let in."""
        context = multiprocessing.get_context("spawn")
        loop = asyncio.get_running_loop()
        pipes: list[Connection] = []
        children: list[SpawnProcess] = []
        with ThreadPoolExecutor(len(self._plans), thread_name_prefix="loader") as threads:
            try:
                for plan in self._plans:
                    ours, theirs = context.Pipe()
                    pipes.append(ours)
                    child = context.Process(target=_child, args=(plan, theirs), daemon=True)
                    child.start()
                    theirs.close()
                    children.append(child)
                loop.add_signal_handler(signal.SIGINT, _stop, children)
                follow = partial(self._follow, pipes, partial(loop.run_in_executor, threads))
                return merged(await asyncio.gather(*map(follow, range(len(pipes)))))
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                for child in children:
                    child.terminate()  # ends what waits for its pipe, too

    async def _follow(self, pipes: list[Connection], in_thread: Any, index: int) -> Measured:
        while True:
            try:
                said = await in_thread(pipes[index].recv)
            except EOFError:
                raise CannotLoad("A loader process died, or was stopped before it began.") from None
            match said:
                case Measured():
                    return said
                case str():
                    raise CannotLoad(said)
                case None:  # its first turn was let in
                    self._knocked += 1
                    if self._knocked == len(pipes):
                        self._begin(pipes)
                case counted:
                    self._seen[index] = counted

    def _begin(self, pipes: list[Connection]) -> None:
        at_s = time.perf_counter() + _START_IN_S
        step_s = 0.0 if self.plan.rate is None else 1 / self.plan.rate
        for index, pipe in enumerate(pipes):
            with suppress(OSError):  # its `_follow` tells that it died
                pipe.send(at_s + index * step_s)


def _stop(children: list[SpawnProcess]) -> None:
    for child in children:
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGINT)


def _child(plan: Plan, pipe: Connection) -> None:
    import uvloop

    os.setsid()  # the terminal's Ctrl-C is the parent's: it passes one on
    with suppress(KeyboardInterrupt, BrokenPipeError):
        uvloop.run(_run(plan, pipe))


async def _run(plan: Plan, pipe: Connection) -> None:
    async def start() -> float:
        pipe.send(None)
        return float(await asyncio.to_thread(pipe.recv))

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TOLD_EVERY_S)
            try:
                pipe.send(run.seen())
            except OSError:  # the parent was killed: nobody wants to know the rest
                os._exit(1)

    run = Run(plan, start)
    telling = asyncio.create_task(tell())
    try:
        measured: Measured | str = await run.measure()
    except CannotLoad as error:
        measured = str(error)
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
    pipe.send(measured)

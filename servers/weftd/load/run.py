"""A load run: closed loop (so many callers, each asking again when it is answered) or open loop (so many
turns a second, whether or not the earlier ones are answered)."""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from weft import Unauthenticated, Weft
from weft.errors import DeadlineExceeded, PermissionDenied, Unavailable, WeftError
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.common_pb2 import Message
from weftd.load import Transport
from weftd.load.stats import Turn, arrivals
from weftd.load.target import Target
from weftd.load.transports import Caller, callers

__all__ = ["MOST_IN_FLIGHT", "CannotLoad", "Measured", "Plan", "Run"]

MOST_IN_FLIGHT: Final = 1000
"""Turns at once in an open loop; half of what a chat process takes."""

_TURN_TIMEOUT_S: Final = 120.0
_TIDY_UP_S: Final = 15.0
_AFTER_A_REFUSAL_S: Final = 0.1
_DELETIONS_AT_ONCE: Final = 8


class CannotLoad(Exception):
    """Why there is nothing to measure, and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """With `rate` (turns a second) an open loop, else a closed one of `callers`. Ends after `requests`
    turns that count, else after `duration_s`; what starts in the first `warm_up_s` does not count."""

    transport: Transport
    target: Target
    token: str
    questions: tuple[str, ...]
    callers: int = 1
    rate: float | None = None
    duration_s: float = 10.0
    requests: int | None = None
    warm_up_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What `stats.summarise` needs, and what it cannot know.

    `not_started` turns of an open loop had no caller in their time; `cpu` is this process's share of
    one core; `left` is how many conversations could not be deleted; `stopped` by Ctrl-C.
    """

    turns: list[Turn]
    began_s: float
    ended_s: float
    not_started: int
    cpu: float
    left: int
    stopped: bool


class Run:
    """One run; `turns` grows while it goes on.

    `start`, where several runs are one, is awaited before the first turn but one, and says when to begin
    (`time.perf_counter`, which is the same clock in every process).
    """

    def __init__(self, plan: Plan, start: Callable[[], Awaitable[float]] | None = None) -> None:
        self.plan = plan
        self.turns: list[Turn] = []
        self._errors = 0
        self._start = start
        self.not_started = 0
        self._id = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._questions = itertools.cycle(plan.questions)
        self._conversations: dict[Caller, str] = {}
        self._began_s = self._cpu_began_s = 0.0

    async def measure(self) -> Measured:
        """Asks until the end of the plan or SIGINT. CannotLoad where the first turn is not let in."""
        async with callers(self.plan.transport, self.plan.target, self.plan.token) as connect:
            self._connect = connect
            first = self._caller()
            await self._knock(first)
            start_s = time.perf_counter() if self._start is None else await self._start()
            await asyncio.sleep(start_s - time.perf_counter())
            self._began_s = start_s + self._warm_up_s()
            loop = asyncio.get_running_loop()
            mark = loop.call_later(self._began_s - time.perf_counter(), self._mark)
            asking = asyncio.create_task(self._closed(first) if self.plan.rate is None else self._open(first))
            loop.add_signal_handler(signal.SIGINT, asking.cancel)
            try:
                await asyncio.wait([asking])
            finally:
                loop.remove_signal_handler(signal.SIGINT)
                mark.cancel()
                asking.cancel()
            over_s = time.perf_counter()
            cpu_s = time.process_time() - self._cpu_began_s
            if not (stopped := asking.cancelled()):
                asking.result()
        counted_by_time = self.plan.requests is None and not stopped
        return Measured(
            turns=self.turns,
            began_s=self._began_s,
            ended_s=self._began_s + self.plan.duration_s if counted_by_time else over_s,
            not_started=self.not_started,
            cpu=cpu_s / (over_s - self._began_s) if self._cpu_began_s else 0.0,
            left=await self._tidy_up(),
            stopped=stopped,
        )

    def seen(self) -> tuple[int, int]:
        """Turns so far, and how many of them failed."""
        return len(self.turns), self._errors

    def _warm_up_s(self) -> float:
        """In an open loop a whole number of turns."""
        plan = self.plan
        return plan.warm_up_s if plan.rate is None else math.ceil(plan.warm_up_s * plan.rate) / plan.rate

    def _mark(self) -> None:
        self._cpu_began_s = time.process_time()

    async def _knock(self, caller: Caller) -> None:
        try:
            async with asyncio.timeout(_TURN_TIMEOUT_S):
                async for _ in caller.ask(self._request(caller)):
                    pass
        except (Unauthenticated, PermissionDenied) as error:
            raise CannotLoad(
                f"{error.message} It is that of WEFT_TOKEN or, without one, made with the key in WEFT_DATA."
            ) from None
        except WeftError as error:
            if isinstance(error, Unavailable) and not error.reason:
                raise CannotLoad(error.message) from None
        except Exception as error:
            where, why = self.plan.target.address, type(error).__name__
            raise CannotLoad(f"What {where} answers cannot be read ({why}). Is it a mesh?") from error

    async def _closed(self, first: Caller) -> None:
        plan = self.plan
        end_s = math.inf if plan.requests is not None else self._began_s + plan.duration_s
        left = math.inf if plan.requests is None else plan.requests

        async def ask_on(caller: Caller) -> None:
            nonlocal left
            while (now_s := time.perf_counter()) < end_s and left > 0:
                left -= now_s >= self._began_s
                await self._turn(caller, now_s)

        async with asyncio.TaskGroup() as tasks:
            for caller in [first, *(self._caller() for _ in range(plan.callers - 1))]:
                tasks.create_task(ask_on(caller))

    async def _open(self, first: Caller) -> None:
        plan = self.plan
        assert plan.rate is not None
        warm_up = round(self._warm_up_s() * plan.rate)
        counted = plan.requests if plan.requests is not None else math.ceil(plan.duration_s * plan.rate)
        end_s = math.inf if plan.requests is not None else self._began_s + plan.duration_s
        slots, free = asyncio.Semaphore(MOST_IN_FLIGHT), [first]

        async def ask(at_s: float) -> None:
            caller = free.pop() if free else self._caller()
            try:
                await self._turn(caller, at_s)
            finally:
                free.append(caller)
                slots.release()

        async with asyncio.TaskGroup() as tasks:
            for number, at_s in enumerate(arrivals(self._began_s, plan.rate, warm_up, counted)):
                if (early_s := at_s - time.perf_counter()) > 0:
                    # uvloop rounds to milliseconds, and a turn must not start before its time.
                    await asyncio.sleep(math.ceil(early_s * 1e3) / 1e3)
                if not await _acquired(slots, end_s):
                    self.not_started = counted - max(0, number - warm_up)
                    break
                tasks.create_task(ask(at_s))

    async def _turn(self, caller: Caller, intended_s: float) -> None:
        started_s, first_s, events, reason = time.perf_counter(), None, 0, "cut off"
        answer = caller.ask(self._request(caller))
        try:
            async with asyncio.timeout(_TURN_TIMEOUT_S):
                async for event in answer:
                    events += 1
                    if first_s is None and event.type == "delta":
                        first_s = time.perf_counter()
                    if event.type in ("done", "error"):
                        reason = event.reason
        except WeftError as error:
            reason = error.reason or _NAMES.get(type(error), "failed")
        except TimeoutError:
            reason = "timed out"
        except Exception as error:  # an answer that cannot be read is counted and does not stop the run
            reason = type(error).__name__
        finally:
            await answer.aclose()
        self._errors += bool(reason)
        self.turns.append(Turn(intended_s, started_s, first_s, time.perf_counter(), events, reason))
        if reason and not events:
            await asyncio.sleep(_AFTER_A_REFUSAL_S)  # as a client would, and not as fast as it can

    def _caller(self) -> Caller:
        caller = self._connect()
        self._conversations[caller] = f"load-{self._id}-{len(self._conversations)}"
        return caller

    def _request(self, caller: Caller) -> StreamChatRequest:
        return StreamChatRequest(
            conversation_id=self._conversations[caller],
            request_id=f"load-{self._id}-t{next(self._numbers)}",
            messages=[Message(role="user", content=next(self._questions))],
        )

    def _weft(self) -> Weft:
        target = self.plan.target
        return Weft(
            target.address,
            token=self.plan.token,
            tls=target.tls,
            root_certificates=target.authorities,
        )

    async def _tidy_up(self) -> int:
        """Deletes the run's conversations, as far as that goes; how many are left."""
        waiting, left = list(self._conversations.values()), len(self._conversations)

        async def delete_on(weft: Weft) -> None:
            nonlocal left
            while waiting:
                try:
                    await weft.conversations.delete(waiting.pop())
                    left -= 1
                except WeftError as error:
                    left -= error.reason == "CONVERSATION_NOT_FOUND"

        try:
            async with asyncio.timeout(_TIDY_UP_S), self._weft() as weft:
                await asyncio.gather(*(delete_on(weft) for _ in range(_DELETIONS_AT_ONCE)))
        except TimeoutError:
            pass
        return left


_NAMES: Final[dict[type[WeftError], str]] = {Unavailable: "no connection", DeadlineExceeded: "timed out"}


async def _acquired(slots: asyncio.Semaphore, until_s: float) -> bool:
    """Whether a slot came free in time."""
    if not slots.locked():
        return await slots.acquire()
    remaining_s = None if until_s == math.inf else until_s - time.perf_counter()
    try:
        async with asyncio.timeout(remaining_s):
            return await slots.acquire()
    except TimeoutError:
        return False

"""Draining: how a stopping server lets its streams end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from weft.v1 import error_reason_pb2
from weftd.errors import Unavailable


class Drain:
    """Tells long streams that the server stops, and the server when they have ended.

    `started` is set once, when draining begins: a stream that could run for ever sends its
    `go_away`, takes nothing new and ends when what runs has ended. `grace_s` is how long it has.
    Calls are taken until the end, for a turn that is being finished calls other services. What must
    not see its own calls cut off is in `at_end`: it lets go of what it runs.
    """

    def __init__(self, grace_s: float) -> None:
        self.started = asyncio.Event()
        self.grace_s = grace_s
        self.at_end: list[Callable[[], Awaitable[None]]] = []
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Tells everyone. Again: nothing."""
        self.started.set()

    async def end(self) -> None:
        """Just before the server stops, with or without a drain."""
        self.begin()
        for let_go in self.at_end:
            await let_go()

    def refuse_new(self) -> None:
        """Unavailable DRAINING once draining has begun: for a servicer that starts something long."""
        if self.started.is_set():
            raise Unavailable(
                error_reason_pb2.ERROR_REASON_DRAINING,
                "This server is stopping. Call again: another takes over.",
            )

    @property
    def open_calls(self) -> int:
        """Calls that are running now, health checks and reflection not counted."""
        return self._open

    def call_began(self) -> None:
        """For the interceptor, and for work that outlives its call."""
        self._open += 1
        self._idle.clear()

    def call_ended(self) -> None:
        """The other end of `call_began`."""
        self._open -= 1
        if self._open == 0:
            self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no call is open; False if some still are after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

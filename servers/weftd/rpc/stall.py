"""A client that stops reading: its call ends after a while, and tells it so when it reads again."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from weft.v1 import error_reason_pb2
from weftd.errors import ResourceExhausted

__all__ = ["StallGuard"]

STALL_LIMIT_S: Final = 60.0
"""How long a message may wait for a client that does not read."""

_TICKS: Final = 4


class StallGuard:
    """Goes round the sending of a stream; `writing` is the number of the message being sent, 0 between two.

    ResourceExhausted OVERLOADED where one message waited for `STALL_LIMIT_S`, up to a quarter longer. What
    was sent before still reaches a client that reads again, then this error. A timer a call, not a message.
    """

    __slots__ = ("_is_over", "_seen", "_task", "_ticks", "_timer", "writing")

    def __init__(self) -> None:
        self.writing = 0
        self._seen = 0
        self._ticks = 0
        self._is_over = False

    def __enter__(self) -> StallGuard:
        self._task = asyncio.current_task()
        self._later()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task is not None and self._task.uncancel() == 0:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"Nobody read this stream for {STALL_LIMIT_S:g} s. Resume after the last event you have.",
            ) from None

    def _later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STALL_LIMIT_S / _TICKS, self._look)

    def _look(self) -> None:
        self._ticks = self._ticks + 1 if self.writing and self.writing == self._seen else 0
        self._seen = self.writing
        if self._ticks < _TICKS:
            self._later()
        elif self._task is not None:
            self._is_over = True
            self._task.cancel()

"""What a client sends piece by piece, and the work on it that has to be finished."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import ParamSpec, TypeVar

__all__ = ["in_time", "on_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_time(pieces: AsyncIterable[T], limit_s: float, late: Exception) -> AsyncIterator[T]:
    """The pieces as they come. Raises `late` where the next one does not come within `limit_s`."""
    following = aiter(pieces)
    while True:
        try:
            async with asyncio.timeout(limit_s):
                piece = await anext(following)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise late from None
        yield piece


async def on_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` on a thread to its end, also when cancelled: what it works on is let go of only after."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise

"""The messages of a publish, written to a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from weft.v1.models_pb2 import PublishModelRequest
from weftd.errors import InvalidArgument
from weftd.models.versions.refusal import VersionRefused

__all__ = ["in_time", "on_thread", "spool"]

# Each hand-over to a thread costs as much as writing 100 KiB.
_GATHER_BYTES: Final = 1 << 20
_PIECE_LIMIT_BYTES: Final = 1 << 20
_SILENCE_LIMIT_S: Final = 60.0

P = ParamSpec("P")
T = TypeVar("T")


async def in_time(messages: AsyncIterable[T]) -> AsyncIterator[T]:
    """The messages as they come. VersionRefused where the next one does not come in time."""
    following = aiter(messages)
    while True:
        try:
            async with asyncio.timeout(_SILENCE_LIMIT_S):
                message = await anext(following)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise VersionRefused(f"nothing more was sent for {_SILENCE_LIMIT_S:g} seconds") from None
        yield message


async def spool(messages: AsyncIterable[PublishModelRequest], file: Path, limit_bytes: int) -> None:
    """Writes their `data` into `file`, which it makes. VersionRefused where it is more than `limit_bytes`."""
    size, gathered, is_first = 0, bytearray(), True
    with await on_thread(file.open, "xb") as target:
        async for message in messages:
            if message.model and not is_first:
                raise InvalidArgument({"model": "belongs into the first message only"})
            if len(message.data) > _PIECE_LIMIT_BYTES:
                raise InvalidArgument({"data": "is longer than 1 MiB: send it in pieces"})
            is_first = False
            gathered += message.data
            size += len(message.data)
            if size > limit_bytes:
                raise VersionRefused(f"it is larger than {limit_bytes:,} bytes")
            if len(gathered) >= _GATHER_BYTES:
                piece, gathered = gathered, bytearray()
                await on_thread(target.write, piece)
        await on_thread(target.write, gathered)


async def on_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` on a thread to its end, also when cancelled: what it works on is removed only after."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise

"""The messages of a publish, written to a file."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Final

from weft.v1.models_pb2 import PublishModelRequest
from weftd.errors import InvalidArgument
from weftd.models.versions.refusal import VersionRefused
from weftd.rpc.incoming import in_time, on_thread

__all__ = ["sent_in_time", "spool"]

# Each hand-over to a thread costs as much as writing 100 KiB.
_GATHER_BYTES: Final = 1 << 20
_PIECE_LIMIT_BYTES: Final = 1 << 20
_SILENCE_LIMIT_S: Final = 60.0


def sent_in_time(messages: AsyncIterable[PublishModelRequest]) -> AsyncIterator[PublishModelRequest]:
    """The messages as they come. VersionRefused where the next one does not come in time."""
    late = VersionRefused(f"nothing more was sent for {_SILENCE_LIMIT_S:g} seconds")
    return in_time(messages, _SILENCE_LIMIT_S, late)


async def spool(messages: AsyncIterable[PublishModelRequest], file: Path, limit_bytes: int) -> None:
    """Writes their `data` into `file`, which it makes. VersionRefused where it is more than `limit_bytes`."""
    size, gathered, is_first = 0, bytearray(), True
    with await on_thread(file.open, "xb") as target:
        async for message in messages:
            if message.model and not is_first:
                raise InvalidArgument({"model": "belongs into the first message only"})
            if len(message.data) > _PIECE_LIMIT_BYTES:
                raise InvalidArgument({"data": "is longer than 1 MiB: send it in pieces"})
            if not message.data and not is_first:
                # A client that sends nothing keeps others from publishing this model.
                raise InvalidArgument({"data": "is empty: send a piece of the tar file, or half-close"})
            is_first = False
            gathered += message.data
            size += len(message.data)
            if size > limit_bytes:
                raise VersionRefused(f"it is larger than {limit_bytes:,} bytes")
            if len(gathered) >= _GATHER_BYTES:
                piece, gathered = gathered, bytearray()
                await on_thread(target.write, piece)
        await on_thread(target.write, gathered)

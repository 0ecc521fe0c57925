"""Objects on the pipes to a process and back: each a length of four bytes, then its pickle."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["pack", "unpack"]

_LENGTH = struct.Struct("!I")


def pack(message: Any) -> bytes:
    """What goes over the pipe for `message`. Raises what `pickle` does."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def unpack(received: bytearray) -> Iterator[Any]:
    """The messages that are whole in `received`; takes them out of it."""
    while len(received) >= _LENGTH.size:
        end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        message = pickle.loads(received[_LENGTH.size : end])  # from our own process
        del received[:end]
        yield message

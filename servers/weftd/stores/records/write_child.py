"""The process that writes for another: `python -m weftd.stores.records.write_child URL`.

Its standard input is a socket. Frames come in: a number, an operation (pickled once more), its item, and
whether it must outlive a power cut. For each group that it commits one goes out: pairs of a number and the
result, or the exception. An empty one says that it is there, each few seconds. It ends with its input.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

import sqlalchemy as sa

# Imported for whoever unpickles its operations: the first turn must not wait for that.
import weftd.stores.records.datasets
import weftd.stores.records.new_turns
import weftd.stores.records.turn_log  # noqa: F401
from weftd.stores.records import frames
from weftd.stores.records.commit import GROUP_LIMIT, Committer
from weftd.stores.records.queued import BatchOperation, Write

_BEAT_S = 5.0
# As PostgreSQL's commit_siblings and commit_delay: where many write, waiting for more of them saves more
# commits (and events on the wire, for deltas that wait become one) than it costs.
_SIBLINGS = 5
_DELAY_S = 0.01
# More is taken from the system and given back each time, which costs as much as a statement.
_READ_BYTES = 1 << 16


def main() -> None:
    # Whoever stops the mesh stops its services: this one writes what they write until they are gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    owner = socket.socket(fileno=0)
    committer, inbox = Committer(sa.make_url(sys.argv[1])), _Inbox(owner)
    _say(owner, [])
    while not inbox.is_at_end:
        results = _commit(committer, inbox) if inbox.wait(_BEAT_S) else []
        _say(owner, results)
        if _SIBLINGS <= len(results) < GROUP_LIMIT:
            time.sleep(_DELAY_S)
    committer.close()


def _commit(committer: Committer, inbox: _Inbox) -> list[tuple[int, Any]]:
    committer.await_turn()
    try:
        group = inbox.take(GROUP_LIMIT)
        results = committer.commit([write for _, write in group])
    finally:
        committer.pass_turn()
    return [(number, _portable(result)) for (number, _), result in zip(group, results, strict=True)]


def _portable(result: Any) -> Any:
    """As it is, unless it is an exception that does not outlive pickling."""
    if isinstance(result, Exception):
        try:
            pickle.loads(pickle.dumps(result))
        except Exception:
            return RuntimeError(f"{type(result).__name__} in the process that writes.")
    return result


def _say(owner: socket.socket, results: list[tuple[int, Any]]) -> None:
    with contextlib.suppress(ConnectionError):  # it is gone; what it has sent is committed all the same
        owner.sendall(frames.pack(results))


class _Inbox:
    """Numbered writes that come from the owner."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self._poll = select.poll()
        self._poll.register(owner, select.POLLIN)
        self._received = bytearray()
        self._writes: deque[tuple[int, Write]] = deque()
        self._closed = False

    @property
    def is_at_end(self) -> bool:
        return self._closed and not self._writes

    def wait(self, most_s: float) -> bool:
        """Whether there is a write, within so long."""
        if not self._writes:
            self._receive(most_s)
        return bool(self._writes)

    def take(self, most: int) -> list[tuple[int, Write]]:
        """So many of those that have come by now."""
        while len(self._writes) < most and self._receive(0):
            pass
        return [self._writes.popleft() for _ in range(min(most, len(self._writes)))]

    def _receive(self, most_s: float) -> bool:
        """Whether something came within so long."""
        if self._closed or not self._poll.poll(most_s * 1000):
            return False
        try:
            data = self._owner.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        self._closed = not data
        self._received += data
        for number, operation, item, durable in frames.unpack(self._received):
            self._writes.append((number, Write(_operation(operation), item, durable)))
        return not self._closed


@functools.lru_cache
def _operation(pickled: bytes) -> BatchOperation[Any, Any]:
    """The same object for the same operation: it is run once for all its items."""
    return pickle.loads(pickled)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()

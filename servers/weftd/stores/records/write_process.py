"""A process that commits what this one writes.

SQLite hands its thread's interpreter over at each step of a statement, and a busy event loop gives it back
late: the database stays locked five times as long as the work in it takes, for all other processes too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import structlog

from weftd.children import RestartPause
from weftd.stores.records import frames
from weftd.stores.records.queued import MOST_WAITING, BatchOperation, overloaded, settle

__all__ = ["WriteProcess"]

_CHILD: Final = "weftd.stores.records.write_child"
# It says something each five seconds, but while a database that is locked lets it wait, 10 s at most.
_SILENCE_LIMIT_S: Final = 20.0
_CLOSE_LIMIT_S: Final = 15.0

P = TypeVar("P")
T = TypeVar("T")

_log = structlog.get_logger()


class WriteProcess:
    """Started again, with back-off, whenever it ends. For one event loop.

    `lost` makes the error of writes of which is not known whether they were committed.
    """

    def __init__(self, url: str, lost: Callable[[], Exception]) -> None:
        self._url = url
        self._lost = lost
        self._numbers = itertools.count(1)
        self._unsent: list[bytes] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._to_process: asyncio.WriteTransport | None = None
        self._closing = False
        self._pause = RestartPause(2 * _SILENCE_LIMIT_S)
        self._keeping = asyncio.create_task(self._keep())
        self.ready = False

    @property
    def waiting(self) -> int:
        """How many writes have no result yet."""
        return len(self._waiting)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.ready else None

    def put(self, operation: BatchOperation[P, T], item: P, durable: bool) -> asyncio.Future[T]:
        """What becomes the item's result. Only while it is `ready`. ResourceExhausted as for a queue."""
        if len(self._waiting) >= MOST_WAITING:
            raise overloaded()
        number = next(self._numbers)
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        self._unsent.append(frames.pack((number, _pickled(operation), item, durable)))
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        return future

    async def close(self) -> None:
        """Returns when all is committed that was put in."""
        self._closing = True
        if self.ready and self._to_process is not None:
            self.ready = False
            self._send()
            with contextlib.suppress(OSError, RuntimeError):
                self._to_process.write_eof()
            await asyncio.wait({self._keeping}, timeout=_CLOSE_LIMIT_S)
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            why = "it ended"
            try:
                await self._run()
            except TimeoutError:
                why = f"it said nothing for {_SILENCE_LIMIT_S:g} s"
            except Exception as error:
                why = repr(error)
            if self._closing:
                return
            wait_s = self._pause.ended()
            _log.error("records_writer_ended", why=why, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _run(self) -> None:
        ours, its = socket.socketpair()
        with its:
            # Not by the event loop: uvloop would fork with all that is open, and gRPC complains of that.
            process = await asyncio.to_thread(_start, self._url, its)
        self._process = process
        link = _Link(self._hear)
        self._to_process, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
        try:
            await link.until_ended()
        finally:
            self.ready = False
            self._unsent.clear()
            process.kill()
            settle((future, self._lost()) for future in self._waiting.values())
            self._waiting.clear()
            self._to_process.close()
            await asyncio.shield(asyncio.to_thread(process.wait))

    def _hear(self, results: list[tuple[int, Any]]) -> None:
        if not self.ready and not self._closing:
            self.ready = True
            self._pause.started()
        settle((self._waiting.pop(number), result) for number, result in results)

    def _send(self) -> None:
        """All writes of one turn of the loop go out together."""
        data = b"".join(self._unsent)
        self._unsent.clear()
        if data and self._to_process is not None:
            # Where it has just ended: what waits for it is told when its end is read.
            with contextlib.suppress(OSError, RuntimeError):
                self._to_process.write(data)


class _Link(asyncio.Protocol):
    """The socket to the process. `hear` gets each group of results as it comes."""

    def __init__(self, hear: Callable[[list[tuple[int, Any]]], None]) -> None:
        self._hear = hear
        self._received = bytearray()
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._received += data
        for results in frames.unpack(self._received):
            self._hear(results)

    def connection_lost(self, _error: Exception | None) -> None:
        self._ended.set_result(None)

    async def until_ended(self) -> None:
        """TimeoutError where the other side says nothing for too long."""
        while (left_s := self._heard_at + _SILENCE_LIMIT_S - self._loop.time()) > 0:
            ended, _ = await asyncio.wait({self._ended}, timeout=left_s)
            if ended:
                return
        raise TimeoutError


@functools.lru_cache
def _pickled(operation: BatchOperation[Any, Any]) -> bytes:
    return pickle.dumps(operation)


def _start(url: str, its: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _CHILD, url],
        stdin=its.fileno(),
        stdout=2,
        start_new_session=True,
    )

"""From ready to stopped: a signal, streams told, health down, calls finished, server stopped."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from typing import Any, Final, Protocol

import structlog

from weftd.rpc.drain import Drain
from weftd.rpc.health import Health

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger()


class Stoppable(Protocol):
    """A server; `grpc.aio.Server` is one."""

    async def stop(self, grace: float | None) -> None: ...


class StopSignals:
    """SIGTERM and SIGINT: the first sets `first`, the second `second`. Also asked for by `ask()`."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.ask)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number in _SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

    def ask(self) -> None:
        """As a signal does."""
        (self.second if self.first.is_set() else self.first).set()


async def run_until_stopped(
    server: Stoppable,
    health: Health,
    drain: Drain,
    *,
    notice_s: float,
    beside: Iterable[asyncio.Task[Any]] = (),
) -> None:
    """Serves until SIGTERM or SIGINT, then drains and stops `server`; a second signal stops it at once.

    `beside` runs as long as the server: where one of them ends before, so does this, with its exception.

    `notice_s` is how long calls are still expected, and taken, after health says NOT_SERVING: longer than
    the interval in which a proxy asks. Then streams are told, and after the calls that are open have ended
    or `drain.grace_s` has passed, the server stops.
    """
    with StopSignals() as signals:
        watching = asyncio.create_task(health.watch())
        try:
            await _until_signal(signals, watching, *beside)
            finishing = asyncio.create_task(_finish(health, drain, notice_s))
            hurrying = asyncio.create_task(signals.second.wait())
            try:
                await asyncio.wait({finishing, hurrying}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (finishing, hurrying):
                    task.cancel()
                await asyncio.gather(finishing, hurrying, return_exceptions=True)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await drain.end()
            await server.stop(None)
            log.info("stopped", cut_calls=drain.open_calls)


async def _until_signal(signals: StopSignals, *running: asyncio.Task[Any]) -> None:
    asked = asyncio.create_task(signals.first.wait())
    try:
        ended, _ = await asyncio.wait({asked, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in ended - {asked}:
            task.result()
            raise RuntimeError(f"{task.get_name()} ended, and should run as long as the server.")
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def _finish(health: Health, drain: Drain, notice_s: float) -> None:
    log.info("draining", open_calls=drain.open_calls, grace_s=drain.grace_s)
    loop = asyncio.get_running_loop()
    end = loop.time() + max(drain.grace_s, notice_s)
    await health.drain()
    # Until nobody sends new calls here any more, they are taken: whoever is told to go away goes elsewhere.
    await asyncio.sleep(notice_s)
    drain.begin()
    await drain.wait_idle(end - loop.time())

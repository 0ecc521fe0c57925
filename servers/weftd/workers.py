"""Several processes of the same services: kept running, and exchanged one by one while streams run."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from weftd import compose
from weftd.compose import CannotStart
from weftd.settings import SERVICES, Settings
from weftd.supervisor import Child, ChildFailed

__all__ = [
    "Worker",
    "Workers",
    "environment",
    "metrics_sockets",
    "plain_failures",
]

# Beyond the grace, for what is cut off then to be recorded.
_LAST_WORDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A process, and its settings: the addresses in them are its own."""

    child: Child
    settings: Settings


class Workers:
    """`make` gives the worker of a slot (0, 1, …); `grace_s` is how long one that stops may finish its calls.

    With `announce`, each worker that is made has addresses of its own, and `announce` is told whose
    should get calls: a worker is exchanged by starting the new one first. Without, the old one ends first.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], Worker],
        grace_s: float,
        announce: Callable[[Sequence[Settings]], Awaitable[None]] | None = None,
    ) -> None:
        self._workers = [make(slot) for slot in range(count)]
        self._make = make
        self._grace_s = grace_s
        self._announce = announce
        self._exchanging = asyncio.Lock()
        self._keepers: asyncio.TaskGroup
        self._kept: dict[Child, asyncio.Task[None]] = {}

    @property
    def settings(self) -> list[Settings]:
        """Of each worker."""
        return [worker.settings for worker in self._workers]

    async def start(self, keepers: asyncio.TaskGroup, said: Callable[[str], None]) -> None:
        """Starts all at once; `said` gets each one's name. ChildFailed, in a group, where one does not start.

        From then on a task of `keepers`, which ends only when cancelled, starts each again whenever it ends.
        """
        self._keepers = keepers

        async def begin(child: Child) -> None:
            await child.start()
            said(child.name)
            self._keep(child)

        async with asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(begin(worker.child))

    async def stop(self) -> None:
        """Lets all finish within the grace."""
        await asyncio.gather(*(self._retire(worker.child) for worker in self._workers))

    async def restart(self, said: Callable[[str], None]) -> None:
        """Exchanges them one by one; `said` gets each one's name.

        ChildFailed or CannotStart where a new one does not start: the others go on as they were.
        """
        async with self._exchanging:
            for slot in range(len(self._workers)):
                await (self._exchange(slot) if self._announce else self._again(slot))
                said(self._workers[slot].child.name)

    async def _exchange(self, slot: int) -> None:
        assert self._announce is not None
        old, new = self._workers[slot], self._make(slot)
        try:
            await new.child.start()
            others = [worker.settings for worker in self._workers if worker is not old]
            await self._announce([*others, new.settings])
        except BaseException:
            await new.child.stop(0)
            raise
        self._workers[slot] = new
        self._keep(new.child)
        await self._retire(old.child)

    async def _again(self, slot: int) -> None:
        child = self._workers[slot].child
        await self._retire(child)
        try:
            await child.start()
        except ChildFailed:
            self._keep(child)  # which tries again
            raise
        self._keep(child)

    def _keep(self, child: Child) -> None:
        self._kept[child] = self._keepers.create_task(child.keep())

    async def _retire(self, child: Child) -> None:
        keeping = self._kept.pop(child, None)
        if keeping is not None:  # first: in its back-off it would start the child again
            keeping.cancel()
            await asyncio.wait([keeping])
        await child.stop(self._grace_s + _LAST_WORDS_S)


def environment(settings: Settings, metrics: socket.socket | None = None) -> dict[str, str]:
    """What a child needs beside the environment that it inherits."""
    return {
        "WEFT_DATA": str(settings.data.absolute()),
        "WEFT_HOST": settings.host,
        "WEFT_PORT": str(settings.port),
        "WEFT_TRITON_URL": settings.triton_url,
        **{f"WEFT_{name.upper()}_ADDRESS": settings.address(name) for name in SERVICES},
        **({compose.METRICS_FD: str(metrics.fileno())} if metrics else {}),
    }


def metrics_sockets(settings: Settings, count: int) -> list[socket.socket | None]:
    """Of each worker. CannotStart where one cannot be listened on."""
    return [compose.metrics_socket(settings, slot) for slot in range(count)]


@contextlib.contextmanager
def plain_failures() -> Iterator[None]:
    """CannotStart, without a group around it, for what did not start."""
    try:
        yield
    except* (ChildFailed, CannotStart) as failures:
        raise CannotStart("\n".join(_said(failures))) from None


def _said(failures: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    for error in failures.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _said(error)
        else:
            yield str(error).removeprefix("✗ ")

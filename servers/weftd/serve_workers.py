"""`weft serve … --workers N`: some services as several processes, each at an address of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from weftd import compose
from weftd.addresses import endpoints
from weftd.control import serve_control
from weftd.lock import alone
from weftd.settings import ServiceName, Settings
from weftd.signals import until_signal
from weftd.supervisor import Child
from weftd.workers import Worker, Workers, environment, metrics_sockets, plain_failures

__all__ = ["serve_workers"]


async def serve_workers(
    settings: Settings, names: Sequence[ServiceName], count: int, console: Console
) -> None:
    """Runs `count` processes until a signal comes.

    Each service is at one address, whose port and those after it the workers take, or at as many as there
    are workers. CannotStart with a plain message.
    """
    with compose.plainly():
        each = [_own_addresses(settings, names, slot, count) for slot in range(count)]
    metrics = metrics_sockets(settings, count)
    title = "+".join(names)

    def make(slot: int) -> Worker:
        own = environment(each[slot], metrics[slot])
        child = Child(f"{title}-{slot + 1}", ["serve", *names], own, None, metrics[slot])
        return Worker(child, each[slot])

    workers = Workers(count, make, settings.drain_grace_s)

    async def run() -> None:
        compose.make_data_directory(settings)
        with alone(settings.data, f"serve-{title}", f"`weft serve {' '.join(names)} --workers`") as lock:
            try:
                with plain_failures():
                    async with asyncio.TaskGroup() as group:
                        await workers.start(group, lambda name: console.print(f"  [green]✓[/] {name}"))
                        group.create_task(serve_control(lock, workers.restart))
            finally:
                await workers.stop()

    await until_signal(run(), lambda: console.print("Stopped."))


def _own_addresses(settings: Settings, names: Sequence[ServiceName], slot: int, count: int) -> Settings:
    own = {}
    for name in names:
        named = endpoints(settings.address(name))
        if len(named) not in (1, count):
            raise ValueError(
                f"WEFT_{name.upper()}_ADDRESS={settings.address(name)} names {len(named)} addresses for "
                f"{count} workers: name as many, or only the first."
            )
        address = named[slot] if len(named) == count else replace(named[0], port=named[0].port + slot)
        own[f"{name}_address"] = str(address)
    return settings.model_copy(update=own)

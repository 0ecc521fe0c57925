"""`weft up`: the services, the job process and Envoy as one program."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import IO

from rich.console import Console

from weftd import compose
from weftd.addresses import free_port
from weftd.compose import CannotStart, plainly
from weftd.control import serve_control
from weftd.lock import alone
from weftd.log_files import keep_small
from weftd.settings import SERVICES, Settings
from weftd.signals import until_signal
from weftd.supervisor import Child
from weftd.workers import Worker, Workers, environment, metrics_sockets, plain_failures

__all__ = ["up"]

# It gives way to all others, so on a busy machine its start takes long.
_JOBS_LIMIT_S = 300
# A language model is read from the disk first.
_TRITON_LIMIT_S = 600


async def up(settings: Settings, workers: int, console: Console, *, triton: bool = False) -> None:
    """Runs until SIGINT or SIGTERM; a second one ends it at once. `workers`: processes with all services.

    With `triton` a Triton of its own serves the models, and is ready before the services start.

    CannotStart with a plain message when a part cannot start. No process outlives it.
    """

    if triton:
        settings = _with_own_triton(settings)

    async def run() -> None:
        compose.make_data_directory(settings)
        with alone(settings.data, "up", "Weft") as lock:
            await _run(settings, workers, console, lock, triton)

    await until_signal(run(), lambda: console.print("Stopped."))


async def _run(settings: Settings, count: int, console: Console, lock: IO[str], triton: bool) -> None:
    started = time.monotonic()
    _require_free_port(settings.host, settings.port)
    _require_directories(settings)
    logs = settings.data.absolute() / "logs"
    metrics = metrics_sockets(settings, count)
    names = [f"services-{slot + 1}" for slot in range(count)] if count > 1 else ["services"]

    def make_services(slot: int) -> Worker:
        name = names[slot]
        own = settings.model_copy(update=_free_addresses())
        child = Child(
            name, ["serve", *SERVICES], environment(own, metrics[slot]), logs / f"{name}.log", metrics[slot]
        )
        return Worker(child, own)

    def make_jobs(_slot: int) -> Worker:
        child = Child("jobs", ["jobs"], environment(settings), logs / "jobs.log", start_limit_s=_JOBS_LIMIT_S)
        return Worker(child, settings)

    def make_triton(_slot: int) -> Worker:
        child = Child(
            "triton",
            ["triton"],
            environment(settings),
            logs / "triton.log",
            start_limit_s=_TRITON_LIMIT_S,
        )
        return Worker(child, settings)

    async def announce(workers: Sequence[Settings]) -> None:
        with plainly():
            fresh = compose.envoy_config(_together(workers))
            await envoy.update(replace(envoy.config, services=fresh.services, edge=fresh.edge))

    services = Workers(count, make_services, settings.drain_grace_s, announce)
    jobs = Workers(1, make_jobs, 0)
    models = Workers(1 if triton else 0, make_triton, 0)

    async def restart(said: Callable[[str], None]) -> None:
        await services.restart(said)
        await jobs.restart(said)

    async def stop() -> None:
        console.print("Stopping …")
        await asyncio.gather(services.stop(), jobs.stop())

    def said(name: str) -> None:
        console.print(f"  [green]✓[/] {name}")

    with plain_failures():
        # Whatever runs is kept running while the others still start.
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as keepers:
            stack.push_async_callback(models.stop)
            await models.start(keepers, said)
            with plainly():
                # Envoy goes last: the services still say goodbye through it.
                envoy = await stack.enter_async_context(compose.envoy_process(_together(services.settings)))
            keepers.create_task(envoy.keep())
            stack.push_async_callback(stop)
            async with asyncio.TaskGroup() as starting:
                starting.create_task(services.start(keepers, said))
                starting.create_task(jobs.start(keepers, said))
            url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
            console.print(f"\n  Weft is ready after {time.monotonic() - started:.1f} s: [bold]{url}[/]")
            console.print(f"  Ctrl-C stops it. Logs are in {logs}\n", highlight=False)
            keepers.create_task(serve_control(lock, restart))
            keepers.create_task(keep_small(logs / f"{name}.log" for name in (*names, "jobs", "triton")))


def _with_own_triton(settings: Settings) -> Settings:
    if settings.triton_url:
        raise CannotStart(
            f"WEFT_TRITON_URL={settings.triton_url} names a Triton that runs elsewhere, and --triton starts "
            "one here: unset that, or leave out --triton."
        )
    return settings.model_copy(update={"triton_url": f"grpc://127.0.0.1:{free_port()}"})


def _free_addresses() -> dict[str, str]:
    """Two loopback ports: one for all gRPC services, which share a process, one for the page."""
    grpc, edge = (f"127.0.0.1:{free_port()}" for _ in range(2))
    return {f"{name}_address": edge if name == "edge" else grpc for name in SERVICES}


def _together(workers: Sequence[Settings]) -> Settings:
    """Their settings as one: every service at the addresses of them all."""
    addresses = {f"{name}_address": ",".join(each.address(name) for each in workers) for name in SERVICES}
    return workers[0].model_copy(update=addresses)


def _require_directories(settings: Settings) -> None:
    """Of models: one that is not there would be missed only when it is loaded."""
    for name in ("embedder", "reranker", "llm"):
        directory = getattr(settings, name)
        if directory is not None and not directory.is_dir():
            raise CannotStart(f"WEFT_{name.upper()}={directory} is no directory. Name the one of a model.")


def _require_free_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise CannotStart(
            f"Weft cannot listen on {host}:{port}: {error.strerror}. "
            f"Stop what uses it, or choose another port: WEFT_PORT={port + 1} weft up"
        ) from None

"""`weft up`: the services, the job process and Envoy as one program."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable

from rich.console import Console

from weftd.compose import CannotStart, envoy_process, make_data_directory, plainly
from weftd.lock import alone
from weftd.settings import SERVICES, Settings
from weftd.supervisor import Child, ChildFailed

__all__ = ["up"]

# It gives way to all others, so on a busy machine its start takes long.
_JOBS_LIMIT_S = 300


async def up(settings: Settings, console: Console) -> None:
    """Runs until SIGINT or SIGTERM; a second one ends it at once.

    CannotStart with a plain message when a part cannot start. No process outlives it.
    """
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        make_data_directory(settings)
        with alone(settings.data, "up", "Weft"):
            await _run(settings, console)
    except asyncio.CancelledError:
        console.print("Stopped.")


async def _run(settings: Settings, console: Console) -> None:
    started = time.monotonic()
    _require_free_port(settings.host, settings.port)
    settings = settings.model_copy(update=_free_addresses())
    logs = settings.data.absolute() / "logs"
    services = Child("services", ["serve", *SERVICES], _environment(settings), logs / "services.log")
    jobs = Child("jobs", ["jobs"], _environment(settings), logs / "jobs.log")
    async with contextlib.AsyncExitStack() as stack:
        with plainly():
            # Envoy goes last: the services still say goodbye through it.
            envoy = await stack.enter_async_context(envoy_process(settings))
        stack.push_async_callback(_stop, services, jobs, settings.drain_grace_s, console)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_step(console, "services", services.start()))
                group.create_task(_step(console, "jobs", jobs.start(_JOBS_LIMIT_S)))
        except* ChildFailed as failures:
            said = (str(error).removeprefix("✗ ") for error in failures.exceptions)
            raise CannotStart("\n".join(said)) from None
        url = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
        console.print(f"\n  Weft is ready after {time.monotonic() - started:.1f} s: [bold]{url}[/]")
        console.print(f"  Ctrl-C stops it. Logs are in {logs}\n", highlight=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(services.keep())
            group.create_task(jobs.keep())
            group.create_task(envoy.keep())


async def _stop(services: Child, jobs: Child, grace_s: float, console: Console) -> None:
    console.print("Stopping …")
    await asyncio.gather(services.stop(grace_s + 5), jobs.stop(5))


async def _step(console: Console, name: str, work: Awaitable[None]) -> None:
    await work
    console.print(f"  [green]✓[/] {name}")


def _environment(settings: Settings) -> dict[str, str]:
    """What the children need beside the environment that they inherit."""
    return {
        "WEFT_DATA": str(settings.data.absolute()),
        "WEFT_HOST": settings.host,
        "WEFT_PORT": str(settings.port),
        **{f"WEFT_{name.upper()}_ADDRESS": settings.address(name) for name in SERVICES},
    }


def _free_addresses() -> dict[str, str]:
    """Two loopback ports: one for all gRPC services, which share a process, one for the page."""
    with socket.socket() as grpc, socket.socket() as edge:
        for each in (grpc, edge):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (grpc, edge)]
    return {f"{name}_address": addresses[name == "edge"] for name in SERVICES}


def _require_free_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise CannotStart(
            f"Weft cannot listen on {host}:{port}: {error.strerror}. "
            f"Stop what uses it, or choose another port: WEFT_PORT={port + 1} weft up"
        ) from None

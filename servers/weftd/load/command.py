"""`weft load`: its token, its progress bar, its output."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from weftd import compose
from weftd.load.processes import Processes
from weftd.load.report import as_json, as_text, summary_of
from weftd.load.run import Plan, Run
from weftd.settings import Settings

__all__ = ["FAILED", "load", "operator_token", "token"]

FAILED: Final = 3
"""Exit status of a run in which turns failed; 1 and 2 are those of a run that never began."""

_LIFETIME_S: Final = 24 * 3600.0
_REFRESH_S: Final = 0.2


def token() -> str:
    """WEFT_TOKEN, else one signed with the key in this machine's data directory. CannotStart."""
    return _token("load", "member")


def operator_token(subject: str) -> str:
    """The same for an operator."""
    return _token(subject, "operator")


def _token(subject: str, role: str) -> str:
    if given := os.environ.get("WEFT_TOKEN"):
        return given
    settings = Settings()
    if not settings.jwks.exists():
        raise compose.CannotStart(
            "There is no token: set WEFT_TOKEN, or run this where the mesh keeps its data "
            f"({settings.jwks} is missing)."
        )
    return compose.make_token(settings, tenant="default", subject=subject, role=role, lifetime_s=_LIFETIME_S)


async def load(plan: Plan, processes: int, *, machine_readable: bool, console: Console) -> int:
    """Runs the plan and prints what came of it on stdout. CannotLoad.

    The exit status: 0 where every turn was answered whole, `FAILED` where one was not or did not start,
    130 after Ctrl-C.
    """
    run = Run(plan) if processes == 1 else Processes(plan, processes)
    async with _progress(run, console):
        measured = await run.measure()
    out = Console(soft_wrap=True, highlight=False, markup=False)
    out.print(json.dumps(as_json(plan, measured)) if machine_readable else as_text(plan, measured))
    if measured.stopped:
        return 130
    summary = summary_of(measured)
    return 0 if summary.answered and summary.answered == summary.turns + measured.not_started else FAILED


@asynccontextmanager
async def _progress(run: Run | Processes, console: Console) -> AsyncIterator[None]:
    """A bar, and how many turns and errors there were; only on a terminal."""
    if not console.is_terminal:
        yield
        return
    plan, began_s = run.plan, time.perf_counter()
    total = plan.requests if plan.requests is not None else plan.warm_up_s + plan.duration_s
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=total)

        async def refresh() -> None:
            while True:
                seen, errors = run.seen()
                done = seen if plan.requests is not None else time.perf_counter() - began_s
                progress.update(
                    task, completed=min(done, total), description=f"{seen:,} turns, {errors:,} errors"
                )
                progress.refresh()
                await asyncio.sleep(_REFRESH_S)

        refreshing = asyncio.create_task(refresh())
        try:
            yield
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing

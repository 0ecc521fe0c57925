"""Runs programs as children: start, readiness, restart, and an end without orphans."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import structlog

from weftd.children import RestartPause

__all__ = ["Child", "ChildFailed", "announce_ready", "die_with_parent"]

_READY_FD = "WEFT_READY_FD"
_PR_SET_PDEATHSIG = 1

log = structlog.get_logger()


class ChildFailed(Exception):
    """A child ended before it was ready; the text is what it said last."""


def die_with_parent() -> None:
    """Asks the kernel to end a supervisor's child when its parent dies, killed or not (Linux)."""
    if _READY_FD not in os.environ:
        return  # started by hand: it may outlive the shell
    os.set_inheritable(int(os.environ[_READY_FD]), False)  # the supervisor waits for this one process
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os._exit(1)  # it died before we asked


def announce_ready() -> None:
    """Tells the supervisor, if there is one, that this program serves now."""
    descriptor = os.environ.pop(_READY_FD, None)
    if descriptor is not None:
        os.write(int(descriptor), b"ready\n")
        os.close(int(descriptor))


class Child:
    """One program of the mesh: `start` waits until it is ready, `keep` restarts it whenever it ends.

    It writes to `log_file`, or where this process does, and inherits the socket `inherited`. Whoever runs
    `keep` ends that before `stop`, and before another `start`.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log_file: Path | None,
        inherited: socket.socket | None = None,
        *,
        start_limit_s: float = 60,
    ) -> None:
        self.name = name
        self._arguments = list(arguments)
        self._environment = dict(environment)
        self._log_file = log_file
        self._inherited = inherited
        self._start_limit_s = start_limit_s
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Returns once the child has announced itself.

        ChildFailed when it ends, stays silent or cannot be run.
        """
        reader, writer = os.pipe()
        try:
            log_start = await self._spawn(writer)
        except BaseException as error:
            os.close(reader)
            if isinstance(error, OSError):
                raise ChildFailed(f"{self.name} cannot be run: {error}") from error
            raise
        finally:
            os.close(writer)
        try:
            said = await asyncio.wait_for(_read_line(reader), self._start_limit_s)
        except TimeoutError:
            await self.stop(0)
            where = f"See {self._log_file}." if self._log_file else "Its last lines say what it waits for."
            raise ChildFailed(
                f"{self.name} was not ready after {self._start_limit_s:.0f} s. {where}"
            ) from None
        if said != b"ready\n":
            assert self._process is not None
            code = await self._process.wait()
            raise ChildFailed(self._last_words(log_start, code))

    async def _spawn(self, ready: int) -> int:
        """Runs the program, which announces itself on `ready`; where in the log file it begins."""
        with _opened(self._log_file) if self._log_file else contextlib.nullcontext() as output:
            log_start = output.tell() if output else 0
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "weftd",
                *self._arguments,
                env={**os.environ, **self._environment, _READY_FD: str(ready)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(ready, self._inherited.fileno()) if self._inherited else (ready,),
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends all in order
            )
        return log_start

    def _last_words(self, log_start: int, code: int) -> str:
        if self._log_file is None:
            return f"{self.name} ended with status {code}: its last lines say why."
        with self._log_file.open(encoding="utf-8", errors="replace") as output:
            output.seek(log_start)
            lines = output.read().strip().splitlines()
        # What is said to people begins so; the log's own lines stand before it.
        begins = next((number for number, line in enumerate(lines) if line.startswith("✗ ")), 0)
        return "\n".join(lines[begins:][-12:]) or f"{self.name} ended without a word (status {code})."

    async def keep(self) -> None:
        """Starts the child again whenever it ends, with back-off. Ends only when cancelled."""
        pause = RestartPause()
        while True:
            assert self._process is not None
            pause.started()
            code = await self._process.wait()
            wait_s = pause.ended()
            log.warning("child_ended", child=self.name, code=code, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)
            try:
                await self.start()
            except ChildFailed as error:
                log.error("child_failed", child=self.name, message=str(error))

    async def stop(self, grace_s: float) -> None:
        """Asks the child to end, and kills it after the grace; without one, at once."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM if grace_s else signal.SIGKILL)
        try:
            await asyncio.wait_for(process.wait(), grace_s or 5)
        except (TimeoutError, asyncio.CancelledError) as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, asyncio.CancelledError):
                raise
            await process.wait()


def _opened(path: Path) -> IO[bytes]:
    """The log file, opened for appending: `log_files` may empty it meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


async def _read_line(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        return await reader.readline()
    finally:
        transport.close()

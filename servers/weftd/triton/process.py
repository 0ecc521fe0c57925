"""The real Triton as a child of this process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import structlog

from weftd.children import RestartPause
from weftd.envoy.config import Endpoint
from weftd.errors import WeftError
from weftd.inference.triton.client import Triton
from weftd.triton.installation import Installation
from weftd.triton.metrics import RESTARTED
from weftd.triton.values import PROOF, prove_values

__all__ = ["Stub", "TritonConfig", "TritonError", "TritonProcess", "shared_memory_prefix"]

log = structlog.get_logger()

_LAUNCH = Path(__file__).with_name("launch.py")
_SHARED_MEMORY = Path("/dev/shm")
_LIVE_LIMIT_S = 30.0
_POLL_S = 0.02
# A model may read weights and compile before its stub answers.
_STUB_LIMIT_S = 300
_EXIT_LIMIT_S = 5
# A server that is killed again and again is back within its own load time, once it has served so long.
_STABLE_S = 5.0
# A file in /dev/shm is made a moment before the stub that it is for.
_NEW_S = 30.0


class TritonError(RuntimeError):
    """Triton did not start, or a model was not loaded. The message says which, and what to look at."""


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """`repository` holds the models; those in `models` are loaded, the others wait for somebody to load them.

    It listens for gRPC on `listen`, and for HTTP and metrics where those are given. Its spans go to the URL
    `traces`, OTLP over HTTP.
    """

    repository: Path
    models: Sequence[str]
    listen: Endpoint
    metrics: Endpoint | None = None
    http: Endpoint | None = None
    traces: str = ""


@dataclass(frozen=True, slots=True)
class Stub:
    """A process that runs one instance of a model. `region`: its file in /dev/shm."""

    pid: int
    model: str
    version: str
    region: str


class TritonProcess:
    """Runs Triton inside `async with`; `directory` gets its log and what it needs to run.

    On entry: TritonError where it or one of its models does not start. It dies with this process, also when
    that is killed, and leaves nothing in /dev/shm; `directory` is this server's alone.
    """

    def __init__(self, installation: Installation, config: TritonConfig, directory: Path) -> None:
        self._installation = installation
        self.config = config
        self._directory = directory.absolute()
        self._family = shared_memory_prefix(directory)
        self._prefix = ""
        self._is_ready = False
        self._guardian: asyncio.subprocess.Process
        self._client: Triton
        self._cleanup = contextlib.AsyncExitStack()

    @property
    def client(self) -> Triton:
        """Calls to it; closed on exit."""
        return self._client

    @property
    def log_file(self) -> Path:
        """What the server and the models say."""
        return self._directory / "server.log"

    @property
    def server(self) -> psutil.Process | None:
        """The server's own process; its children are the models' stubs. None while there is none."""
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._guardian.pid).children():
                if child.name() == "tritonserver":
                    return child
        return None

    @property
    def is_up(self) -> bool:
        """Whether it has started, with all its models, and has not ended since."""
        return self._is_ready and self._guardian.returncode is None

    def stubs(self) -> list[Stub]:
        """Those that live. Reads /proc: blocks for a few ms."""
        found = []
        for child in self.server.children() if self.server else ():
            with contextlib.suppress(psutil.Error, ValueError):  # it ended meanwhile, or is no stub yet
                _, code, region, *_ = child.cmdline()  # a dead one has none
                *_, model, version, _ = Path(code).parts
                found.append(Stub(child.pid, model, version, region))
        return found

    def sweep(self, stubs: Iterable[Stub]) -> None:
        """Removes what stubs that died have left in /dev/shm; `stubs` are the living."""
        used = {stub.region for stub in stubs}
        for file in _SHARED_MEMORY.glob(f"{self._prefix}*"):
            with contextlib.suppress(OSError):
                if file.name not in used and time.time() - file.stat().st_ctime > _NEW_S:
                    file.unlink()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._client = Triton(_reachable(self.config.listen))
            stack.push_async_callback(self._client.close)
            await asyncio.to_thread(self._prepare)
            await self._spawn()
            stack.push_async_callback(self._stop)
            await self._until_live()
            await self._load()
            self._is_ready = True
            self._cleanup = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._cleanup.aclose()

    async def keep(self) -> None:
        """Starts Triton again whenever it ends, with back-off. Ends only when cancelled."""
        pause = RestartPause(_STABLE_S)
        while True:
            pause.started()
            code = await self._guardian.wait()
            self._is_ready = False
            wait_s = pause.ended()
            RESTARTED.inc()
            log.warning("triton_ended", code=code, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)
            try:
                await asyncio.to_thread(self._prepare)
                await self._spawn()
                await self._until_live()
            except (OSError, TritonError) as error:
                log.error("triton_not_started", message=str(error))
                await self._stop()
                continue
            try:
                await self._load()
            except TritonError as error:  # the others are served, and the canary tries this one again
                log.error("triton_incomplete", message=str(error))
            self._is_ready = True

    def _prepare(self) -> None:
        """Ends what an earlier server with this directory has left: where its guardian was killed, stubs."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._installation.link_backend(self._directory / "backends")
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(each.startswith(self._family) for each in process.cmdline()):
                    process.kill()
        for left in _SHARED_MEMORY.glob(f"{self._family}*"):
            left.unlink(missing_ok=True)

    async def _spawn(self) -> None:
        self._prefix = f"{self._family}{secrets.token_hex(4)}-"
        config = self.config
        arguments = [
            f"--model-repository={config.repository}",
            f"--model-repository={PROOF}",
            "--model-control-mode=explicit",
            # What a configuration leaves out would be asked of the model, at each load.
            "--disable-auto-complete-config",
            f"--backend-directory={self._directory / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            f"--backend-config=python,stub-timeout-seconds={_STUB_LIMIT_S}",
            f"--cache-directory={self._installation.caches}",
            f"--exit-timeout-secs={_EXIT_LIMIT_S}",
            *_listening("grpc", config.listen),
            *_listening("http", config.http),
            *_listening("metrics", config.metrics),
            *_tracing(config.traces),
            "--log-info=false",
        ]
        with self.log_file.open("ab") as output:
            self._guardian = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), self._prefix),
                *(str(_EXIT_LIMIT_S + 1), str(self._installation.server)),
                *arguments,
                cwd=self._directory,
                env=self._installation.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its own session: a Ctrl-C in the terminal is ours to handle, in our order.
                start_new_session=True,
            )

    async def _load(self) -> None:
        """All models at once; TritonError for the first that fails, when the others are served."""
        loads = (self._client.load(model) for model in self.config.models)
        for ended in await asyncio.gather(prove_values(self._client), *loads, return_exceptions=True):
            if isinstance(ended, WeftError):
                # Without the model's traceback, which is in the log.
                said = ended.detail.partition("\n\nAt:")[0]
                raise TritonError(f"{said or ended.message} (more in {self.log_file})") from ended
            if ended is not None:
                raise ended
        log.info("triton_ready", address=str(self.config.listen), models=list(self.config.models))

    async def _until_live(self) -> None:
        try:
            async with asyncio.timeout(_LIVE_LIMIT_S):
                while not await self._client.is_ready():
                    if self._guardian.returncode is not None:
                        raise TritonError(
                            f"Triton ended with status {self._guardian.returncode} before it was ready: "
                            f"{await asyncio.to_thread(_last_line, self.log_file)} (more in {self.log_file})"
                        )
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise TritonError(
                f"Triton was not ready within {_LIVE_LIMIT_S:.0f} s; see {self.log_file}."
            ) from None

    async def _stop(self) -> None:
        """The guardian ends the server, its stubs and what is theirs in /dev/shm."""
        with contextlib.suppress(ProcessLookupError):
            self._guardian.terminate()
        await self._guardian.wait()


def shared_memory_prefix(directory: Path) -> str:
    """How the names of the files in /dev/shm begin of a server that runs in `directory`."""
    return f"weft-{hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:12]}-"


def _listening(name: str, where: Endpoint | None) -> list[str]:
    if where is None:
        return [f"--allow-{name}=false"]
    return [f"--{name}-address={where.host}", f"--{name}-port={where.port}"]


def _tracing(url: str) -> list[str]:
    """Spans of each call that brings a sampled trace, as children of the caller's."""
    if not url:
        return []
    settings = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1")
    exporter = (f"url={url}", "resource=service.name=triton", "bsp_schedule_delay=1000")
    return [f"--trace-config={each}" for each in (*settings, *(f"opentelemetry,{one}" for one in exporter))]


def _reachable(listen: Endpoint) -> str:
    """From this machine: a server that listens everywhere is reached on loopback."""
    return str(Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host), listen.port))


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"

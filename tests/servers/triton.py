"""A real Triton with given models, run as `weft triton` runs it, but with no canary: what dies stays dead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import pytest
import structlog

from weftd.envoy.config import Endpoint
from weftd.triton.installation import Installation, TritonMissing
from weftd.triton.process import TritonConfig, TritonError, TritonProcess

__all__ = ["MODELS_PYTHON", "RunningTriton", "need_triton", "running_triton"]

MODELS_PYTHON = Path(sys.prefix) / "models" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class RunningTriton:
    """`address` is host:port of its gRPC; `repository` may be changed, and its models loaded again."""

    address: str
    http_url: str
    metrics_url: str
    repository: Path
    log: Path
    process: psutil.Process

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self.process.pid

    def stubs(self, model: str = "") -> list[psutil.Process]:
        """The processes that run the models, or the one named; a dead one is none."""
        return [
            child
            for child in self.process.children()
            if child.status() != psutil.STATUS_ZOMBIE and (not model or _model(child) == model)
        ]


def _model(stub: psutil.Process) -> str:
    """Its first argument is …/MODEL/VERSION/model.py; one that has just ended has none."""
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        return Path(stub.cmdline()[1]).parts[-3]
    return ""


def need_triton() -> Installation:
    """Skips where Triton is not installed; fails there in CI."""
    try:
        return Installation.find(MODELS_PYTHON)
    except TritonMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@contextlib.contextmanager
def running_triton(
    models: Mapping[str, Path] | Path, directory: Path, load: bool = True, *, url: str = ""
) -> Iterator[RunningTriton]:
    """A server whose repository is a copy of `models`: directories by model name, or one that holds them all.

    Or it has its models at `url`, in an object store, where they lie already. All are loaded unless `load` is
    False. It keeps to `directory`, and ends with the block.
    RuntimeError where it, or a model, does not start: what the server said.
    """
    need_triton()
    named = models if isinstance(models, Mapping) else {each.name: each for each in models.iterdir()}
    repository = directory / "models"
    for name, source in named.items():
        shutil.copytree(source, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    ports = _free_ports(3)
    arguments = [str(directory), url or str(repository), *map(str, ports), *(sorted(named) if load else ())]
    # A process of its own: gRPC has one event loop at a time, and that is the test's.
    program = subprocess.Popen(
        [sys.executable, "-m", __name__, *arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None and program.stdout is not None
    guardian: psutil.Process | None = None
    try:
        said = program.stdout.readline().strip()
        if not said.isdecimal():
            raise RuntimeError(said or "Triton's program ended without a word.")
        guardian = psutil.Process(int(said)).parent()
        grpc, http, metrics = (f"127.0.0.1:{port}" for port in ports)
        yield RunningTriton(
            grpc,
            f"http://{http}",
            f"http://{metrics}/metrics",
            repository,
            directory / "server" / "server.log",
            psutil.Process(int(said)),
        )
    finally:
        # At once, and not after what still runs: its guardian ends all, whatever state it is in.
        program.kill()
        program.wait()
        if guardian is not None:
            guardian.wait(10)
        program.stdin.close()
        program.stdout.close()


async def _serve(directory: Path, repository: str, ports: Sequence[int], models: Sequence[str]) -> None:
    """Says the server's pid, and ends when its input does."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    grpc, http, metrics = (Endpoint("127.0.0.1", port) for port in ports)
    # Of a repository in an object store only the server knows what its name means.
    config = TritonConfig(cast("Path", repository), models, grpc, metrics, http)
    try:
        async with TritonProcess(need_triton(), config, directory / "server") as process:
            server = process.server
            print(server.pid if server else "it has ended", flush=True)
            await asyncio.to_thread(sys.stdin.read)
    except TritonError as error:
        print(" ".join(str(error).split()), flush=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], list(map(int, sys.argv[3:6])), sys.argv[6:]))

"""A whole mesh behind the real Envoy, as its users start it: one program, or one process for each service."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SERVICES = ("chat", "retrieval", "knowledge", "models", "edge")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def two_free_ports() -> int:
    """The first of two neighbours."""
    while True:
        first = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", first + 1)):
            return first


@dataclass
class Mesh:
    """Where it listens, its data, and its processes by name."""

    port: int
    data: Path
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def token(
        self, tenant: str = "acme", role: str = "operator", hours: float = 1, subject: str = "tester"
    ) -> str:
        options = {"tenant": tenant, "role": role, "hours": str(hours), "subject": subject}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        made = subprocess.run(
            [sys.executable, "-m", "weftd", "token", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.strip()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.data.parent / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "weftd", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.processes[name] = process
        return process

    def wait_ready(self, timeout_s: float = 60) -> None:
        """Until Envoy passes a call on to every service."""
        deadline = time.monotonic() + timeout_s
        token = self.token()
        paths = ("/api/v1/models", "/api/v1/conversations", "/api/v1/knowledge/datasets", "/")
        while True:
            missing = [path for path in paths if not self._answers(path, token)]
            if not missing and self._answers("/api/v1/search", token, b'{"query": "ready"}'):
                return
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{self.logs()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready after {timeout_s} s: {missing}\n{self.logs()}")
            time.sleep(0.1)

    def workers(self) -> list[psutil.Process]:
        """The processes of services under `weft up`, or under `weft serve … --workers` in its place."""
        return [
            child
            for child in psutil.Process(self.processes["up"].pid).children()
            if "serve" in child.cmdline()[3:4]
        ]

    def wait_started(self) -> None:
        """Until all of `weft up` has started, the job process too; RuntimeError where it ended instead."""
        up, said = self.processes["up"], [""]
        while said[0] != str(up.pid) or len(said) < 2:
            if up.poll() is not None:
                raise RuntimeError(self.logs())
            time.sleep(0.1)
            said = (self.data / "up.lock").read_text().splitlines() or [""]

    def _answers(self, path: str, token: str, body: bytes | None = None) -> bool:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def logs(self, last_bytes: int = 4000) -> str:
        files = [*self.data.parent.glob("*.log"), *self.data.glob("logs/*.log")]
        return "\n".join(
            f"--- {file.name}\n{file.read_text(errors='replace')[-last_bytes:]}" for file in sorted(files)
        )

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def mesh_environment(data: Path, port: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WEFT_")}
    return {
        **inherited,
        "WEFT_DATA": str(data),
        "WEFT_PORT": str(port),
        "WEFT_DRAIN_GRACE_S": "2",
        **(extra or {}),
    }


@contextlib.contextmanager
def running_mesh(
    directory: Path, topology: str = "one", environment: Mapping[str, str] | None = None
) -> Iterator[Mesh]:
    """`one`: `weft up`; `two`: with two workers; `triton`: with the models on Triton; `split`: services, job
    process and Envoy on their own."""
    data = directory / "data"
    mesh = Mesh(port := free_port(), data, mesh_environment(data, port, environment))
    try:
        if topology == "one":
            mesh.start("up", "up")
        elif topology == "two":
            mesh.start("up", "up", "--workers", "2")
        elif topology == "triton":
            mesh.start("up", "up", "--triton")
        else:
            for name in SERVICES:
                mesh.environment[f"WEFT_{name.upper()}_ADDRESS"] = f"127.0.0.1:{free_port()}"
            for name in SERVICES:
                mesh.start(name, "serve", name)
            mesh.start("jobs", "jobs")
            mesh.start("envoy", "envoy")
        mesh.wait_ready()
        yield mesh
    finally:
        mesh.stop()

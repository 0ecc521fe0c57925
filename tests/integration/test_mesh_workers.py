"""Several workers: one dies or is exchanged, and no client notices more than a pause."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from bench.disturbed import Account
from bench.kill_worker import both_serve, kill_and_restart, two_workers
from tests.servers.mesh import SERVICES, Mesh, free_port, mesh_environment, two_free_ports
from tests.servers.model_mesh import ModelMesh

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def model_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelMesh]:
    with two_workers(tmp_path_factory.mktemp("two")) as running:
        yield running


def restart(mesh: Mesh) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weftd", "restart"]
    return subprocess.run(command, env=mesh.environment, capture_output=True, text=True, check=False)


def kept_every_promise(account: Account) -> bool:
    assert account.wrong == []
    assert account.failed_reads == {}
    assert account.reads > 100
    assert account.turns >= 10
    return True


async def test_a_worker_killed_and_both_exchanged_under_load(model_mesh: ModelMesh) -> None:
    killed, restarted = await kill_and_restart(model_mesh, kills=3, restarts=1)
    assert kept_every_promise(killed)
    assert kept_every_promise(restarted)
    assert killed.resumed


def test_a_worker_that_cannot_start_leaves_the_others_alone(model_mesh: ModelMesh) -> None:
    """What was installed meanwhile is broken, say."""
    mesh = model_mesh.mesh
    before = {worker.pid for worker in mesh.workers()}
    keys = mesh.data / "jwks.json"
    sound = keys.read_bytes()
    keys.write_bytes(b"no keys")
    try:
        failed = restart(mesh)
    finally:
        keys.write_bytes(sound)
    assert failed.returncode == 1
    assert "jwks.json is no JWKS file" in failed.stderr
    assert {worker.pid for worker in mesh.workers()} == before
    assert httpx.get(f"{mesh.url}/api/v1/models", headers=_bearer(model_mesh)).status_code == 200


def test_restart_says_what_it_did(model_mesh: ModelMesh) -> None:
    done = restart(model_mesh.mesh)
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in done.stderr.splitlines()] == [
        "Restarting …",
        "services-1",
        "services-2",
        "jobs",
        "✓ Restarted.",
    ]


def test_nothing_to_restart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "up.lock").write_text("1\n/nowhere/control.sock\n")  # of one that was killed
    done = restart(Mesh(0, tmp_path, mesh_environment(tmp_path / "data", 8080)))
    assert done.returncode == 1
    assert "Nothing that can restart" in done.stderr


def _bearer(model_mesh: ModelMesh) -> dict[str, str]:
    return {"Authorization": f"Bearer {model_mesh.token('acme')}"}


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Mesh]:
    """`weft serve … --workers 2` behind an Envoy of its own."""
    mesh = Mesh(port := free_port(), tmp_path / "data", mesh_environment(tmp_path / "data", port))
    first, edge = two_free_ports(), two_free_ports()
    mesh.environment |= {
        f"WEFT_{name.upper()}_ADDRESS": f"127.0.0.1:{first}-{first + 1}" for name in SERVICES
    }
    mesh.environment["WEFT_EDGE_ADDRESS"] = f"127.0.0.1:{edge}-{edge + 1}"
    mesh.environment["WEFT_ENVOY_METRICS_ADDRESS"] = f"127.0.0.1:{free_port()}"
    mesh.environment["WEFT_METRICS_ADDRESS"] = f"127.0.0.1:{(metrics := two_free_ports())}"
    try:
        mesh.start("up", "serve", *SERVICES, "--workers", "2")
        mesh.start("envoy", "envoy")
        mesh.wait_ready()
        asyncio.run(both_serve(mesh))
        for port in (metrics, metrics + 1):
            assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        yield mesh
    finally:
        mesh.stop()


def test_workers_of_a_service_of_its_own(apart: Mesh) -> None:
    headers = {"Authorization": f"Bearer {apart.token()}"}
    victim = apart.workers()[0].pid
    os.kill(victim, signal.SIGKILL)
    with httpx.Client(base_url=apart.url, headers=headers) as rest:
        for _ in range(50):
            assert rest.get("/api/v1/conversations").status_code == 200
        asyncio.run(both_serve(apart))
        before = {worker.pid for worker in apart.workers()}
        assert victim not in before
        running = subprocess.Popen([sys.executable, "-m", "weftd", "restart"], env=apart.environment)
        while running.poll() is None:
            assert rest.get("/api/v1/conversations").status_code == 200
            assert rest.get("/").status_code == 200
    assert running.returncode == 0
    assert not before & {worker.pid for worker in apart.workers()}


def test_what_dies_while_another_part_still_starts_is_started_again(tmp_path: Path) -> None:
    """The job process gives way to all others: its start takes long where the machine is busy."""
    mesh = Mesh(port := free_port(), tmp_path / "data", mesh_environment(tmp_path / "data", port))
    up = mesh.start("up", "up")
    starting: list[psutil.Process] = []
    try:
        while "jobs" not in (running := children(up.pid)):
            assert up.poll() is None, mesh.logs()
            time.sleep(0.01)
        starting.append(running["jobs"])
        starting[0].suspend()
        mesh.wait_ready()
        for name in ("envoy", "serve"):
            children(up.pid)[name].kill()
            mesh.wait_ready()
    finally:
        for each in starting:
            with suppress(psutil.NoSuchProcess):
                each.resume()
        mesh.stop()


def children(pid: int) -> dict[str, psutil.Process]:
    """Of `weft up`, by what they run."""
    found = {}
    for child in psutil.Process(pid).children():
        with suppress(psutil.Error, IndexError):  # it has just ended
            command = child.cmdline()
            found[command[3] if "weftd" in command else "envoy"] = child
    return found


def test_addresses_that_do_not_fit_the_workers(tmp_path: Path) -> None:
    environment = mesh_environment(tmp_path, 8080, {"WEFT_CHAT_ADDRESS": "127.0.0.1:5001-5003"})
    command = [sys.executable, "-m", "weftd", "serve", "chat", "--workers", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search("names 3 addresses for 2 workers", done.stderr.replace("\n", " "))

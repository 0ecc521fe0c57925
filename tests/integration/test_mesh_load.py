"""`weft load` against a whole mesh, over each transport."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import get_args

import httpx
import pytest

from tests.servers.mesh import Mesh
from weftd.load import Transport
from weftd.load.run import CannotLoad, Plan, Run
from weftd.load.stats import summarise
from weftd.load.target import Target


@pytest.mark.parametrize("transport", get_args(Transport))
async def test_every_transport_is_measured_and_nothing_is_left(mesh: Mesh, transport: Transport) -> None:
    token = mesh.token(f"t-{uuid.uuid4().hex[:8]}", role="member")
    plan = Plan(transport, Target(mesh.address), token, ("Hello",), callers=2, requests=6, warm_up_s=0)
    result = await Run(plan).measure()
    summary = summarise(result.turns, result.began_s, result.ended_s)
    assert (summary.answered, summary.errors, result.left) == (6, {}, 0)
    assert summary.events >= 12
    assert summary.turn_ms is not None and summary.first_token_ms is not None
    assert 0 < summary.first_token_ms.p50 <= summary.turn_ms.p50
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as client:
        kept = (await client.get(f"{mesh.url}/api/v1/conversations")).json()
    assert not kept.get("conversations")


@pytest.mark.parametrize("transport", get_args(Transport))
async def test_a_bad_token_is_told_at_once(mesh: Mesh, transport: Transport) -> None:
    with pytest.raises(CannotLoad, match="WEFT_TOKEN"):
        await Run(Plan(transport, Target(mesh.address), "none", ("Hello",))).measure()


def run_load(mesh: Mesh, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "weftd", "load", "--address", mesh.address, "--warm-up", "0", "--json"]
    environment = mesh.environment
    return subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_makes_its_own_token_and_prints_json(mesh: Mesh) -> None:
    done = run_load(mesh, "--rate", "20", "--requests", "10")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["answered"], figures["loop"], figures["rate"]) == (10, "open", 20)
    assert done.stderr == ""


@pytest.mark.parametrize("loop", [("--callers", "3"), ("--rate", "50")])
def test_several_processes_are_one_load(mesh: Mesh, loop: tuple[str, str]) -> None:
    done = run_load(mesh, *loop, "--requests", "21", "--processes", "2", "--transport", "ws")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["answered"], figures["errors"], figures["conversations_left"]) == (21, {}, 0)


def test_turns_that_fail_are_told_in_the_exit_status(mesh: Mesh) -> None:
    done = run_load(mesh, "--requests", "2", "--question", "Hello", "--question", " ")
    assert json.loads(done.stdout)["errors"] == {"INVALID_FIELD": 1}
    assert done.returncode == 3
    assert run_load(mesh, "--processes", "3", "--requests", "2").returncode == 1

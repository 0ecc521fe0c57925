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


@pytest.mark.parametrize("transport", get_args(Transport))
async def test_every_transport_is_measured_and_nothing_is_left(mesh: Mesh, transport: Transport) -> None:
    token = mesh.token(f"t-{uuid.uuid4().hex[:8]}", role="member")
    plan = Plan(transport, mesh.address, token, ("Hello",), callers=2, requests=6, warm_up_s=0)
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
        await Run(Plan(transport, mesh.address, "none", ("Hello",))).measure()


def test_the_command_makes_its_own_token_and_prints_json(mesh: Mesh) -> None:
    options = ["--address", mesh.address, "--rate", "20", "--requests", "10", "--warm-up", "0", "--json"]
    command = [sys.executable, "-m", "weftd", "load", *options]
    done = subprocess.run(command, env=mesh.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["answered"], figures["loop"], figures["rate"]) == (10, "open", 20)
    assert done.stderr == ""

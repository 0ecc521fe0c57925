"""One tenant's calls leave room for the others'."""

from __future__ import annotations

import asyncio
import sys

import pytest
from google.rpc import error_details_pb2

from tests.servers.rpc_mesh import Mesh, bearer, details, models_request, reason, refused, running, token


async def test_one_call_too_many_is_refused_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["weftd.rpc.tenant_calls"], "MOST_CALLS", 0)
    async with running(Mesh()) as mesh:
        error = await refused(mesh.stub.ListModels(models_request(), metadata=bearer()))
        assert reason(error) == "OVERLOADED"
        assert details(error, error_details_pb2.RetryInfo).retry_delay.seconds == 1
        monkeypatch.setattr(sys.modules["weftd.rpc.tenant_calls"], "MOST_CALLS", 4)
        for _ in range(3):  # each gives its place back
            asked = [mesh.stub.ListModels(models_request(), metadata=bearer()) for _ in range(4)]
            await asyncio.gather(*asked)
        await mesh.stub.ListModels(models_request(), metadata=bearer(token(tenant="other")))

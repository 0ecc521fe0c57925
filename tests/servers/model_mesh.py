"""A whole mesh whose language models are `PacedModel`'s."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.servers.mesh import Mesh, running_mesh
from tests.servers.paced_model import PacedModel, paced_model
from tests.servers.transports import Transports, take, transports, turn
from weftd.rpc.auth import mint

RESUME_GRACE_S = 1.0


@dataclass
class ModelMesh:
    mesh: Mesh
    model: PacedModel
    topology: str

    def token(self, tenant: str, role: str = "operator", lifetime_s: float = 3600) -> str:
        """Signed with the mesh's key, as `weft token` does, without a process of its own."""
        claims = {"issuer": "weft", "audience": "weft", "tenant": tenant, "subject": "tester"}
        return mint(self.mesh.data / "jwks.json", roles=[role], ttl_s=lifetime_s, **claims)

    @contextlib.asynccontextmanager
    async def client(
        self,
        tenant: str,
        role: str = "operator",
        lifetime_s: float = 3600,
        headers: dict[str, str] | None = None,
    ) -> AsyncIterator[Transports]:
        token = self.token(tenant, role, lifetime_s)
        async with transports(self.mesh.address, token, headers) as opened:
            yield opened


@contextlib.contextmanager
def running_model_mesh(
    directory: Path, topology: str, more: Mapping[str, str] | None = None
) -> Iterator[ModelMesh]:
    with paced_model() as model:
        environment = {
            "WEFT_ENDPOINTS": model.endpoints(),
            "WEFT_RESUME_GRACE_S": str(RESUME_GRACE_S),
            "WEFT_UPLOAD_LIMIT_MB": "1",
            **(more or {}),
        }
        with running_mesh(directory, topology, environment) as mesh:
            running = ModelMesh(mesh, model, topology)
            asyncio.run(_first_answer(running))
            yield running


async def _first_answer(running: ModelMesh) -> None:
    """The first one loads the client library of the endpoints: tests of time begin after it."""
    async with running.client("first") as client:
        assert (await take(await client.grpc(turn("Begin", model_id="story"))))[-1].type == "done"


async def killed(model_mesh: ModelMesh) -> None:
    """Kills the services with -9; returns once the supervisor's new ones answer."""
    (services,) = model_mesh.mesh.workers()
    services.kill()
    await asyncio.to_thread(model_mesh.mesh.wait_ready)
    assert [worker.pid for worker in model_mesh.mesh.workers()] != [services.pid]

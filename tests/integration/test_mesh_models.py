"""Versions of models in a whole mesh with a Triton, behind Envoy: by `weft models` and over REST."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.servers.mesh import Mesh, running_mesh
from tests.servers.model_versions import archive, messages
from tests.servers.rpc_mesh import reason
from tests.servers.triton import need_triton
from weft.v1 import models_pb2 as pb
from weft.v1 import models_pb2_grpc


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    need_triton()
    with running_mesh(tmp_path_factory.mktemp("models"), "triton") as running:
        yield running


@pytest.fixture
def version(mesh: Mesh, tmp_path: Path) -> Path:
    """The embedder's own files: what an operator changes and publishes."""
    source = mesh.data / "triton" / "models" / "embedder" / "1"
    return Path(shutil.copytree(source, tmp_path / "version"))


def weft(mesh: Mesh, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "weftd", "models", *arguments],
        env=mesh.environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


def served(mesh: Mesh) -> tuple[int, list[int]]:
    headers = {"Authorization": f"Bearer {mesh.token()}"}
    (embedder,) = httpx.get(f"{mesh.url}/api/v1/models/versions", headers=headers).json()["models"]
    return embedder["served"], embedder["versions"]


def test_weft_models(mesh: Mesh, version: Path) -> None:
    before, _ = served(mesh)
    (version / "notes.txt").write_text("tuned")
    published = weft(mesh, "publish", "embedder", str(version))
    assert published.returncode == 0, published.stderr
    assert f"embedder version {before + 1} serves now" in published.stdout
    assert (mesh.data / "triton/models/embedder" / str(before + 1) / "notes.txt").is_file()
    assert served(mesh)[0] == before + 1
    listed = weft(mesh, "list")
    assert ["embedder", str(before + 1)] == listed.stdout.splitlines()[1].split()[:2]
    back = weft(mesh, "rollback", "embedder")
    assert f"embedder version {before + 2} serves now, with the files of {before}" in back.stdout, back.stderr
    headers = {"Authorization": f"Bearer {mesh.token()}"}
    found = httpx.post(f"{mesh.url}/api/v1/search", headers=headers, json={"query": "still there?"})
    assert found.status_code == 200


def test_what_is_refused_is_one_line(mesh: Mesh, version: Path, tmp_path: Path) -> None:
    before = served(mesh)
    (version / "model.py").write_text("class (")
    refused = weft(mesh, "publish", "embedder", str(version))
    assert refused.returncode == 1
    assert "SyntaxError" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    unknown = weft(mesh, "publish", "nobody", str(version))
    assert unknown.returncode == 1
    assert "no model nobody" in unknown.stderr
    assert served(mesh) == before


def test_another_embedder_is_refused(mesh: Mesh, version: Path) -> None:
    before = served(mesh)
    model = version / "model.py"
    changed = model.read_text().replace("self._encoder.model.model_id.encode()", 'b"other@1"')
    assert "other@1" in changed
    model.write_text(changed)
    refused = weft(mesh, "publish", "embedder", str(version))
    assert refused.returncode == 1
    assert "WEFT_EMBEDDER" in refused.stderr, refused.stderr
    assert served(mesh) == before


def test_interrupted_in_the_middle(mesh: Mesh, version: Path) -> None:
    before = served(mesh)
    with (version / "weights.bin").open("wb") as file:
        file.truncate(3 << 30)  # more than is sent in a moment
    command = [sys.executable, "-m", "weftd", "models", "publish", "embedder", str(version)]
    process = subprocess.Popen(command, env=mesh.environment, stderr=subprocess.PIPE, text=True)
    spooled = mesh.data / "triton" / "publishing" / "embedder" / "sent.tar"

    def size() -> int:
        return spooled.stat().st_size if spooled.exists() else 0

    wait_until(lambda: size() > 50 << 20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    wait_until(lambda: not spooled.parent.exists())
    assert served(mesh) == before


def wait_until(condition: Any, limit_s: float = 30) -> None:
    async def wait() -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.02)

    asyncio.run(wait())


def test_watching(mesh: Mesh) -> None:
    command = [sys.executable, "-m", "weftd", "models", "watch"]
    process = subprocess.Popen(command, env=mesh.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("embedder version")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()


@pytest.mark.parametrize("role", ["member", "editor"])
async def test_only_operators(mesh: Mesh, role: str) -> None:
    token = mesh.token(role=role)
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)
        calls = [
            stub.PublishModel(messages("embedder", archive({"model.py": b""})), metadata=metadata),
            stub.ListModelVersions(pb.ListModelVersionsRequest(), metadata=metadata),
            stub.RollbackModel(pb.RollbackModelRequest(model="embedder"), metadata=metadata),
            anext(aiter(stub.WatchModels(pb.WatchModelsRequest(), metadata=metadata))),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert reason(raised.value) == "ROLE_MISSING"
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=mesh.url, headers=headers) as client:
        for method, path in (
            ("GET", "/api/v1/models/versions"),
            ("POST", "/api/v1/models/embedder/rollback"),
            ("GET", "/api/v1/models/watch"),
        ):
            answer = await client.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 403, answer.text

"""A mesh with a reranker, in process and on Triton: searches in its order, and without it when it is lost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.servers.encoders import write_bert
from tests.servers.mesh import Mesh, running_mesh
from tests.servers.triton import need_triton
from weftd.inference.onnx_reranker import open_reranker

TEXTS = ["The notice period is four weeks.", "The office is in Bonn.", "Four weeks of notice.", "Holidays."]
QUERY = "what is the notice period?"
WORDS = "what is the notice period ? of it four weeks office in bonn . a b c d"


@pytest.fixture(scope="module", params=["one", "triton"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    if request.param == "triton":
        need_triton()
    directory = tmp_path_factory.mktemp(f"rerank-{request.param}")
    write_bert(directory / "cross", WORDS, scores=1)
    settings = {"WEFT_RERANKER": str(directory / "cross")}
    with running_mesh(directory, request.param, settings) as running:
        with client(running) as rest:
            files = [("file", (f"{'abcd'[number]}.txt", text.encode())) for number, text in enumerate(TEXTS)]
            rest.post("/api/v1/knowledge/upload", data={"dataset_id": "ds"}, files=files).raise_for_status()
            rest.post("/api/v1/knowledge/index", json={"dataset_id": "ds"}).raise_for_status()
            wait(lambda: rest.get("/api/v1/knowledge/status/ds").json()["status"] == "ready")
        yield running


def client(mesh: Mesh) -> httpx.Client:
    headers = {"Authorization": f"Bearer {mesh.token('acme')}"}
    return httpx.Client(base_url=mesh.url, headers=headers, timeout=30)


def wait(is_so: Any, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def search(mesh: Mesh) -> Any:
    with client(mesh) as rest:
        return rest.post("/api/v1/search", json={"query": QUERY}).raise_for_status().json()


async def test_a_search_has_the_rerankers_order_and_scores(mesh: Mesh, tmp_path: Path) -> None:
    reranker = open_reranker(mesh.data.parent / "cross", tmp_path, 1)
    passages = [f"{'abcd'[number]}\n{text}" for number, text in enumerate(TEXTS)]
    scores = dict(zip(TEXTS, await reranker.score(QUERY, passages), strict=True))
    await reranker.close()
    found = search(mesh)
    assert [each["content"] for each in found["results"]] == sorted(TEXTS, key=lambda text: -scores[text])
    for each in found["results"]:
        assert each["score"] == pytest.approx(scores[each["content"]], abs=1e-5)
    assert "degraded" not in found["metadata"]


@pytest.mark.parametrize("mesh", ["triton"], indirect=True)
def test_a_reranker_that_is_lost_is_said_and_comes_back(mesh: Mesh) -> None:
    stubs = [
        child
        for child in psutil.Process(mesh.processes["up"].pid).children(recursive=True)
        if any("/reranker/" in word for word in command(child))
    ]
    assert stubs
    for stub in stubs:
        stub.kill()
    assert search(mesh)["metadata"]["degraded"] == ["rerank"]
    wait(lambda: "degraded" not in search(mesh)["metadata"])


def command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []

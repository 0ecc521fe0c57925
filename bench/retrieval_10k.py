"""Retrieval, first token and whole turn with the embedded defaults on 10,000 passages, on two cores.

    .venv/bin/python -m bench.retrieval_10k

Twenty documents are uploaded and indexed; more passages of them are then put into the store directly,
10,000 in all, with vectors near those of the model (embedding them all would take minutes and change nothing
for a search). The services and Envoy are pinned to two cores, the caller to the others. One caller, one
request after the other; each question holds words of one passage. Processor time is that of the services.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import psutil

from bench.setting import client, fresh_mesh, indexed, percentile, processes, prose, table
from bench.stream_cost import processor_s
from tests.servers.mesh import Mesh
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message
from weft.v1.retrieval_pb2 import SearchRequest
from weft.v1.retrieval_pb2_grpc import RetrievalServiceStub
from weftd.inference.onnx_embedder import open_embedder
from weftd.stores.passages.lance import LancePassages
from weftd.stores.passages.port import Passage

PASSAGES = 10_000
DOCUMENTS = 20
WORDS = 100
# Passages that the model embeds; the vectors of the others are these, disturbed.
EMBEDDED = 200
SEARCHES = 300
TURNS = 100
TENANT, DATASET = "acme", "bench"
CORES = (0, 1)


def filled(mesh: Mesh) -> list[str]:
    """Fills the store; the texts of all passages."""
    passages = [prose(number, WORDS) for number in range(PASSAGES)]
    with client(mesh, TENANT) as rest:
        names = [f"document-{number}.txt" for number in range(DOCUMENTS)]
        files = [("file", (name, passages[number].encode())) for number, name in enumerate(names)]
        answer = rest.post("/api/v1/knowledge/upload", data={"dataset_id": DATASET}, files=files)
        documents = [each["document_id"] for each in answer.raise_for_status().json()["documents"]]
        rest.post("/api/v1/knowledge/index", json={"dataset_id": DATASET}).raise_for_status()
        indexed(rest, DATASET)
    asyncio.run(_put(mesh.data, documents, names, passages))
    return passages


async def _put(data: Path, documents: list[str], names: list[str], texts: list[str]) -> None:
    embedder = open_embedder(None, data / "models", 4)
    known = await embedder.embed(texts[:EMBEDDED])
    store = await LancePassages.connect(data / "passages")
    dice = np.random.default_rng(1)
    at_ms = int(time.time() * 1000)
    for start in range(0, PASSAGES, 1000):
        numbers = range(start, start + 1000)
        rows = [
            Passage(
                DATASET, documents[n % DOCUMENTS], 1000 + n, names[n % DOCUMENTS], None, "", texts[n], at_ms
            )
            for n in numbers
        ]
        await store.put(TENANT, embedder.model_id, rows, _near(known[[n % EMBEDDED for n in numbers]], dice))
    await store.compact(TENANT)
    await store.close()
    await embedder.close()


def _near(vectors: npt.NDArray[np.float32], dice: np.random.Generator) -> npt.NDArray[np.float32]:
    noisy = vectors + dice.normal(0, 0.5 / vectors.shape[1] ** 0.5, vectors.shape)
    unit: npt.NDArray[np.float32] = (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)
    return unit


def questions(passages: list[str], count: int) -> list[str]:
    dice = random.Random(7)
    asked = []
    for _ in range(count):
        words = [word.strip(".") for word in dice.choice(passages).split() if len(word) > 4]
        asked.append(f"What is said of {' '.join(dice.sample(words, 4))}?")
    return asked


def pin(process: psutil.Process, cores: tuple[int, ...]) -> None:
    """All threads that the process has."""
    for thread in process.threads():
        os.sched_setaffinity(thread.id, cores)


async def search(mesh: Mesh, asked: list[str]) -> list[float]:
    """Milliseconds of each search, as its caller sees them."""
    metadata, took = (("authorization", f"Bearer {mesh.token(TENANT)}"),), []
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = RetrievalServiceStub(channel)
        for question in asked:
            began = time.perf_counter()
            found = await stub.Search(SearchRequest(query=question, top_k=5), metadata=metadata)
            took.append((time.perf_counter() - began) * 1e3)
            assert list(found.metadata.routes) == ["dense", "lexical"] and found.results
    return took


async def chat(mesh: Mesh, asked: list[str]) -> tuple[list[float], list[float]]:
    """Milliseconds to the first event of each turn, and to its end."""
    metadata, first, whole = (("authorization", f"Bearer {mesh.token(TENANT)}"),), [], []
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = ChatServiceStub(channel)
        for question in asked:
            request = StreamChatRequest(messages=[Message(role="user", content=question)])
            began, first_s = time.perf_counter(), 0.0
            async for event in stub.StreamChat(request, metadata=metadata):
                first_s = first_s or time.perf_counter() - began
                last = event.type
            assert last == "done"
            first.append(first_s * 1e3)
            whole.append((time.perf_counter() - began) * 1e3)
    return first, whole


def main() -> None:
    with fresh_mesh() as mesh:
        passages = filled(mesh)
        running = processes(mesh)
        everything = tuple(sorted(os.sched_getaffinity(0)))
        for name in ("services", "writer", "envoy", "supervisor", "jobs"):
            pin(running[name], CORES)
        os.sched_setaffinity(0, set(everything) - set(CORES) or CORES)
        asked = questions(passages, 20 + SEARCHES)

        def cpu_ms() -> float:
            return processor_s(running["services"]) * 1e3

        asyncio.run(search(mesh, asked[:20]))
        before = cpu_ms()
        searches = asyncio.run(search(mesh, asked[20:]))
        per_search = (cpu_ms() - before) / SEARCHES
        asyncio.run(chat(mesh, asked[:5]))
        before = cpu_ms()
        first, whole = asyncio.run(chat(mesh, asked[20 : 20 + TURNS]))
        per_turn = (cpu_ms() - before) / TURNS
    rows = [
        [name, f"{statistics.median(took):.1f}", f"{percentile(took, 0.95):.1f}", mark, cpu]
        for name, took, mark, cpu in (
            ("retrieval", searches, "50 ms", f"{per_search:.1f}"),
            ("first token", first, "800 ms, target 400", ""),
            ("whole turn", whole, "2,500 ms, target 1,500", f"{per_turn:.1f}"),
        )
    ]
    header = [f"{PASSAGES:,} passages, {len(CORES)} cores", "p50, ms", "p95, ms", "p95 at most"]
    table([*header, "processor ms"], rows)


if __name__ == "__main__":
    main()

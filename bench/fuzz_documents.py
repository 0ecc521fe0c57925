"""Documents of every format, cut and garbled, all the way through the index job."""

from __future__ import annotations

import random
import time
from collections import Counter

import httpx

from bench.fuzz_inputs import FILES
from bench.fuzz_values import garbled
from tests.servers.mesh import Mesh

__all__ = ["garbled_documents"]

_AT_ONCE = 25
_WITHIN_S = 600.0
_WAYS = ("cut", "insert", "overwrite", "overwrite", "")


def garbled_documents(mesh: Mesh, token: str, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Indexes so many; what became of them, and what is wrong with it."""
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=mesh.url, headers=headers, timeout=60) as rest:
        for batch in range(0, count, _AT_ONCE):
            dataset = f"garbled-{seed}-{batch}"
            files = [_made(dice, number) for number in range(min(_AT_ONCE, count - batch))]
            answer = rest.post(
                "/api/v1/knowledge/upload",
                data={"dataset_id": dataset},
                files=[("file", file) for file in files],
            )
            outcomes.update(
                each["error"]["reason"] if "error" in each else "" for each in answer.json()["documents"]
            )
            rest.post("/api/v1/knowledge/index", json={"dataset_id": dataset})
            status = _settled(rest, dataset)
            reasons = [each["reason"] for each in status.get("errors", [])]
            outcomes.update({"indexed": status.get("documents", 0) - len(reasons)})
            outcomes.update(reasons)
            if status["status"] not in ("ready", "failed") or "INTERNAL" in reasons:
                failures.append(f"documents of {dataset}, seed {seed}: {status}")
    del outcomes[""]
    return outcomes, failures


def _made(dice: random.Random, number: int) -> tuple[str, bytes]:
    name, data = dice.choice(tuple(FILES.items()))
    for _ in range(dice.randint(1, 4)):
        data = garbled(
            data, (dice.choice(_WAYS), dice.randrange(1 << 20), dice.randbytes(dice.randint(1, 40)))
        )
    return f"{number}-{name}", data


def _settled(rest: httpx.Client, dataset: str) -> dict[str, object]:
    """The dataset's status once its job is over, or as it is when that takes too long."""
    deadline = time.monotonic() + _WITHIN_S
    while True:
        status = dict(rest.get(f"/api/v1/knowledge/status/{dataset}").json())
        if status.get("status") in ("ready", "failed") or time.monotonic() > deadline:
            return status
        time.sleep(0.2)

"""How much every process grows over idle while 50 MB are uploaded, by form and by stream.

.venv/bin/python -m bench.upload_memory
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from bench.setting import MemoryWatch, client, fresh_mesh, processes, table
from tests.servers.mesh import Mesh
from weft import Weft

__all__ = ["Growth", "measure"]

UPLOAD_BYTES = 50_000_000
Growth = dict[str, float]
"""MB by process, of resident memory."""


def measure(mesh: Mesh, scratch: Path, rounds: int = 1) -> dict[str, Growth]:
    """The growth during each upload, over what each process had before the first."""
    watched = {name: each for name, each in processes(mesh).items() if name != "parser"}
    mesh.wait_started()  # or the job process still grows
    token = mesh.token("uploads")
    grown: dict[str, Growth] = {}
    with client(mesh, "uploads") as rest:
        ways: dict[str, Callable[[Path], None]] = {
            "form": lambda path: _by_form(rest, path),
            "stream": lambda path: asyncio.run(_by_stream(mesh.address, token, path)),
        }
        idle = {name: process.memory_info().rss for name, process in watched.items()}
        for number in range(rounds):
            for way, upload in ways.items():
                path = scratch / f"{way}-{number}.txt"
                _write(path)
                with MemoryWatch(watched) as watch:
                    upload(path)
                grown[f"{way} {number + 1}"] = {
                    name: (watch.peak[name] - idle[name]) / 1e6 for name in watched
                }
                path.unlink()
    return grown


def _write(path: Path) -> None:
    """A file that nothing can make smaller."""
    with path.open("wb") as file:
        for _ in range(UPLOAD_BYTES // 1_000_000):
            file.write(os.urandom(500_000).hex().encode())


def _by_form(rest: httpx.Client, path: Path) -> None:
    with path.open("rb") as file:
        answer = rest.post(
            "/api/v1/knowledge/upload", data={"dataset_id": "big"}, files={"file": (path.name, file)}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["documents"][0]["bytes"] in (UPLOAD_BYTES, str(UPLOAD_BYTES))


async def _by_stream(address: str, token: str, path: Path) -> None:
    async with Weft(address, token=token) as weft:
        answer = await weft.knowledge.upload(path, dataset_id="big")
    assert answer.documents[0].bytes == UPLOAD_BYTES


def main() -> None:
    with fresh_mesh() as mesh, tempfile.TemporaryDirectory() as scratch:
        grown = measure(mesh, Path(scratch), rounds=3)
    names = list(next(iter(grown.values())))
    rows = [[way, *(f"{growth[name]:.1f}" for name in names)] for way, growth in grown.items()]
    table([f"upload of {UPLOAD_BYTES // 1_000_000} MB", *(f"{name}, MB over idle" for name in names)], rows)


if __name__ == "__main__":
    main()

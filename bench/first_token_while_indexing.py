"""The first token of one tenant's chats, while a PDF of 1,000 pages of another is indexed, and without.

    .venv/bin/python -m bench.first_token_while_indexing

Callers ask through Envoy over gRPC, one question after the other (closed loop, with the embedded defaults:
a search over a small dataset and the extractive answerer). The two conditions take turns, a PDF for each; a
turn counts as "while" if it began and ended between the job's beginning and its end.
"""

from __future__ import annotations

import asyncio
import io
import sys
import time
import uuid
from dataclasses import dataclass, field

import grpc
import httpx
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen.canvas import Canvas

from bench.setting import client, fresh_mesh, indexed, percentile, prose, table
from tests.servers.mesh import Mesh
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.chat_pb2_grpc import ChatServiceStub
from weft.v1.common_pb2 import Message

CALLERS = 2
PAGES = 1_000
WORDS_PER_PAGE = 150
ROUNDS = 3
QUIET_S = 15.0
WHO = ["lighthouse", "bakery", "harbour", "mill", "school", "bridge", "theatre", "station"]


@dataclass
class Turns:
    """First tokens in seconds, and what the conditions lasted together."""

    first_s: list[float] = field(default_factory=list)
    lasted_s: float = 0.0


def pdf(seed: int) -> bytes:
    """A book of plain text."""
    data = io.BytesIO()
    canvas = Canvas(data, pagesize=A4, pageCompression=1)
    for page in range(PAGES):
        text = canvas.beginText(50, 790)
        words = prose(seed * 100_000 + page, WORDS_PER_PAGE).split()
        for start in range(0, len(words), 11):
            text.textLine(" ".join(words[start : start + 11]))
        canvas.drawText(text)
        canvas.showPage()
    canvas.save()
    return data.getvalue()


def prepare(rest: httpx.Client) -> None:
    """The dataset that is asked about."""
    lines = [
        f"The {what} of Brindlemere was built in {1800 + 7 * n} by Odalys Finch."
        for n, what in enumerate(WHO)
    ]
    text = "\n\n".join(
        f"# {what}\n\n{line} {prose(n, 120)}" for n, (what, line) in enumerate(zip(WHO, lines, strict=True))
    )
    rest.post(
        "/api/v1/knowledge/upload", data={"dataset_id": "town"}, files={"file": ("town.md", text.encode())}
    ).raise_for_status()
    rest.post("/api/v1/knowledge/index", json={"dataset_id": "town"}).raise_for_status()
    indexed(rest, "town")


async def ask(address: str, token: str, turns: Turns, over: asyncio.Event) -> None:
    """Asks from all callers until `over`."""
    metadata = (("authorization", f"Bearer {token}"),)

    async def caller(stub: ChatServiceStub, number: int) -> None:
        count = number
        while not over.is_set():
            count += 1
            question = f"When was the {WHO[count % len(WHO)]} of Brindlemere built?"
            request = StreamChatRequest(
                conversation_id=uuid.uuid4().hex, messages=[Message(role="user", content=question)]
            )
            began, first_s = time.perf_counter(), 0.0
            async for event in stub.StreamChat(request, metadata=metadata):
                if event.type == "delta" and not first_s:
                    first_s = time.perf_counter() - began
                assert event.type != "error", event
            if not over.is_set():
                turns.first_s.append(first_s)

    began = time.perf_counter()
    async with grpc.aio.insecure_channel(address) as channel, asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller(ChatServiceStub(channel), number))
    turns.lasted_s += time.perf_counter() - began


async def measure(mesh: Mesh) -> tuple[Turns, Turns, int]:
    without, during = Turns(), Turns()
    token = mesh.token("asking")
    with client(mesh, "asking") as asking, client(mesh, "indexing") as indexing:
        prepare(asking)
        await quiet(mesh.address, token, Turns(), 3)
        passages = 0
        for number in range(ROUNDS):
            book = await asyncio.to_thread(pdf, number)
            await quiet(mesh.address, token, without, QUIET_S)
            passages = await busy(mesh.address, token, during, indexing, f"book-{number}", book)
            print(
                f"round {number + 1}: p95 without {percentile(without.first_s, 0.95) * 1e3:.0f} ms, "
                f"while indexing {percentile(during.first_s, 0.95) * 1e3:.0f} ms",
                file=sys.stderr,
            )
    return without, during, passages


async def quiet(address: str, token: str, turns: Turns, seconds: float) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await ask(address, token, turns, over)


async def busy(address: str, token: str, turns: Turns, rest: httpx.Client, dataset: str, book: bytes) -> int:
    """Asks while the book is indexed; returns how many passages it has."""

    def build() -> int:
        return int(str(indexed(rest, dataset)["chunks"]))

    def upload() -> None:
        rest.post(
            "/api/v1/knowledge/upload", data={"dataset_id": dataset}, files={"file": ("book.pdf", book)}
        ).raise_for_status()
        rest.post("/api/v1/knowledge/index", json={"dataset_id": dataset}).raise_for_status()
        while rest.get(f"/api/v1/knowledge/status/{dataset}").json()["status"] == "pending":
            time.sleep(0.01)

    await asyncio.to_thread(upload)
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(ask(address, token, turns, over))
        passages = await asyncio.to_thread(build)
        over.set()
        await asking
    return passages


def main() -> None:
    with fresh_mesh() as mesh:
        without, during, passages = asyncio.run(measure(mesh))
    rows = []
    for name, turns in (("without", without), (f"while a PDF of {PAGES} pages is indexed", during)):
        values = [percentile(turns.first_s, share) * 1e3 for share in (0.5, 0.95, 0.99)]
        rows.append([name, len(turns.first_s), *(f"{value:.0f}" for value in values)])
    ratio = percentile(during.first_s, 0.95) / percentile(without.first_s, 0.95)
    table([f"first token, {CALLERS} callers", "turns", "p50, ms", "p95, ms", "p99, ms"], rows)
    print(f"p95 {ratio:.2f} times that without; {passages} passages in {during.lasted_s / ROUNDS:.0f} s")


if __name__ == "__main__":
    main()

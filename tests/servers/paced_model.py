"""A model's endpoint that writes at a known pace and keeps a record of every request.

The name of the model says how it writes: "story" (`PIECES`, soon), "slow" (the same within seconds), "sequel"
(as slow, and it goes on with a text that was begun), "endless", "flood" (endless, as fast as it is read); or
how it fails: a name in `_REFUSALS`, "garbage", "cut".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

PIECES = [f"Piece {number} 第{number}段；" for number in range(1, 9)]
STORY = "".join(PIECES)
FLOOD_PIECE = "洪水" * 1000
_PACE_S = {"endless": 0.005, "flood": 0.0, "slow": 0.3, "sequel": 0.3}
_REFUSALS = {"auth": 401, "rate": 429, "fail": 500, "refuse": 400}
MODELS = ("story", "slow", "sequel", "endless", "flood", "garbage", "cut", *_REFUSALS)


@dataclass
class Request:
    """One request, the names of its headers in small letters.

    `left_at` (of `time.monotonic`): when its client went away before the end.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    made: int = 0
    begun: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    left_at: float = 0.0


class PacedModel:
    """The server on a free port of this machine, on a thread of its own."""

    def __init__(self) -> None:
        self.base_url = ""
        self._requests: list[Request] = []
        self._came = threading.Condition()

    def endpoints(self) -> str:
        """For WEFT_ENDPOINTS."""
        return json.dumps(
            [
                {"model_id": name, "base_url": self.base_url, "can_continue": name == "sequel"}
                for name in MODELS
            ]
        )

    def requests(self, question: str) -> list[Request]:
        """Those that ask this question."""
        with self._came:
            return [each for each in self._requests if question in each.body["messages"][-1]["content"]] + [
                each
                for each in self._requests
                if each.body["messages"][-1]["role"] == "assistant"
                and question in each.body["messages"][-2]["content"]
            ]

    async def asked(self, question: str) -> Request:
        """The newest request with this question, once it came and a piece was written."""
        return await asyncio.to_thread(self._wait_asked, question)

    def _wait_asked(self, question: str) -> Request:
        with self._came:
            assert self._came.wait_for(lambda: self.requests(question), 20), f"never asked: {question}"
        newest = self.requests(question)[-1]
        assert newest.begun.wait(20)
        return newest

    async def abandoned(self, request: Request) -> float:
        """When its client went away."""
        assert await asyncio.to_thread(request.left.wait, 20), f"never closed; {request.made} pieces made"
        return request.left_at

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            lines = (line.partition(":") for line in head.split("\r\n")[1:] if line)
            headers = {name: value.strip() for name, _, value in lines}
            body = await reader.readexactly(int(headers["content-length"]))
            request = Request(json.loads(body), headers)
            with self._came:
                self._requests.append(request)
                self._came.notify_all()
            writing = asyncio.create_task(self._write(request, writer))
            watching = asyncio.create_task(reader.read(1))
            await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
            # A broken connection may show itself in the writing first.
            if not writing.done() or writing.exception() is not None:
                request.left_at = time.monotonic()
                request.left.set()
            for task in (writing, watching):
                task.cancel()
            await asyncio.gather(writing, watching, return_exceptions=True)

    async def _write(self, request: Request, writer: asyncio.StreamWriter) -> None:
        model = request.body["model"]
        if model in _REFUSALS:
            body = b'{"error": {"message": "no"}}'
            writer.write(
                b"HTTP/1.1 %d No\r\nConnection: close\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (_REFUSALS[model], len(body), body)
            )
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n")
        if model == "garbage":
            writer.write(b"data: {not json\n\n")
        async for piece in _pieces(request.body):
            writer.write(_chunk({"content": piece}))
            await writer.drain()
            request.made += 1
            request.begun.set()
            if model == "cut" and request.made == 2:
                writer.transport.abort()
                return
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        writer.write(_chunk({}, "stop", usage) + b"data: [DONE]\n\n")
        await writer.drain()


async def _pieces(body: dict[str, Any]) -> AsyncIterator[str]:
    pace_s = _PACE_S.get(body["model"], 0.03)
    while body["model"] in ("endless", "flood"):
        yield "on " if body["model"] == "endless" else FLOOD_PIECE
        await asyncio.sleep(pace_s)
    last = body["messages"][-1]
    begun = len(last["content"]) if last["role"] == "assistant" else 0
    for piece in PIECES:
        if begun < len(piece):
            yield piece[begun:]
            await asyncio.sleep(pace_s)
        begun = max(0, begun - len(piece))


def _chunk(delta: dict[str, str], finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk | ({'usage': usage} if usage else {}))}\n\n".encode()


@contextlib.contextmanager
def paced_model() -> Iterator[PacedModel]:
    model = PacedModel()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(model.serve, "127.0.0.1", 0))
    model.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield model
    finally:
        server.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

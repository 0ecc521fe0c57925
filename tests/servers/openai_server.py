"""An endpoint that speaks OpenAI's chat completions and misbehaves on demand: the model's name says how."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = ["Hello", " there", ",", " friend", "."]
_REFUSALS: dict[str, tuple[int, dict[str, str], dict[str, str]]] = {
    "auth": (401, {"message": "Incorrect API key provided: sk-very-sec***", "code": "invalid_api_key"}, {}),
    "forbidden": (403, {"message": "no"}, {}),
    "rate": (429, {"message": "slow down", "code": "rate_limit_exceeded"}, {"retry-after": "7"}),
    "rate_ms": (429, {"message": "slow down"}, {"retry-after-ms": "1500"}),
    "fail": (500, {"message": "oops"}, {}),
    "overloaded": (503, {"message": "busy"}, {"retry-after": "3"}),
    "long": (400, {"message": "too long", "code": "context_length_exceeded"}, {}),
    "policy": (400, {"message": "no", "code": "content_policy_violation"}, {}),
    "bad": (422, {"message": "no"}, {}),
    "unknown": (404, {"message": "no such model", "code": "model_not_found"}, {}),
}


@dataclass
class OpenAIServer:
    """`requests`: the bodies that came, with the key as "authorization". `began`: set when something was
    sent. `left`: set when a client broke off a stream.
    """

    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Event = field(default_factory=asyncio.Event)

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append({**body, "authorization": request.headers.get("authorization")})
        model = body["model"]
        if model in _REFUSALS:
            status, error, headers = _REFUSALS[model]
            return JSONResponse({"error": error}, status, headers)
        if model == "new" and "max_tokens" in body:
            error = {
                "message": "use max_completion_tokens",
                "code": "unsupported_parameter",
                "param": "max_tokens",
            }
            return JSONResponse({"error": error}, 400)
        return StreamingResponse(self._watched(self._stream(model, body)), media_type="text/event-stream")

    async def _watched(self, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                self.began.set()
                yield chunk
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _stream(self, model: str, body: dict[str, Any]) -> AsyncIterator[str]:
        if model == "hang":
            yield ": still here\n\n"
            await asyncio.Event().wait()
        if model == "garbage":
            yield "data: {not json\n\n"
        if model == "odd":
            yield 'data: {"object": "something else"}\n\n'
            return
        if model == "error_event":
            yield 'data: {"error": {"message": "sk-very-secret", "code": "overloaded"}}\n\n'
        if model == "numbers":
            yield 'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n'
        words = WORDS if model != "unsound" else ["a\0b", "c\ud800d"]
        if model == "repeat":
            words = [body["messages"][-1]["content"][:3], body["messages"][-1]["content"][3:], " and on"]
        yield _chunk({"role": "assistant", "content": ""})
        for number, word in enumerate(words):
            yield _chunk({"content": word})
            if number == 1:
                if model == "cut":
                    raise ConnectionResetError("cut on purpose")
                if model == "stop_early":
                    return
                if model == "stall":
                    await asyncio.Event().wait()
            if model == "slow":
                await asyncio.sleep(0.02)
            if model == "endless":
                while True:
                    yield _chunk({"content": word})
                    await asyncio.sleep(0.005)
        reason = {"short": "length", "filtered": "content_filter"}.get(model, "stop")
        yield _chunk({}, reason)
        if body.get("stream_options", {}).get("include_usage") and model != "no_usage":
            usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
            if model == "unsound":
                usage = {"prompt_tokens": -1, "completion_tokens": 1 << 40, "total_tokens": 1}
            chunk = {"object": "chat.completion.chunk", "choices": [], "usage": usage}
            yield f"data: {json.dumps(chunk)}\n\n"
        if model == "lingers":
            await asyncio.Event().wait()
        yield "data: [DONE]\n\n"


def _chunk(delta: dict[str, str], finish_reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[OpenAIServer]:
    """The server on a free port of this machine, in this event loop."""
    state = OpenAIServer()
    app = Starlette(routes=[Route("/v1/chat/completions", state.completions, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        state.base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.listen(100)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield state
        finally:
            server.should_exit = server.force_exit = True
            await serving

"""The page's own client (connect-web) in Chromium: one browser, and a tab for each holder of a token."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToJson, ParseDict

from weft.v1.chat_pb2 import CancelTurnRequest, ChatEvent, ResumeChatRequest, StreamChatRequest

WEB = Path(__file__).parents[2] / "clients" / "web"
_PATIENCE_S = 60


class PageFailure(Exception):
    """How the page's client ended a call: `reason` as the page understands it, `code` as connect-web does."""

    def __init__(self, reason: str, code: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.reason = reason
        self.code = code


class Chromium:
    """Talks with clients/web/tests/bridge.ts: lines of JSON there and back."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._calls: dict[str, PageStream] = {}
        self._numbers = itertools.count()
        self._ready = threading.Event()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        assert self._ready.wait(_PATIENCE_S), "Chromium did not start."

    @asynccontextmanager
    async def client(self, token: str) -> AsyncIterator[PageClient]:
        """A tab with that token, opened for its first call."""
        client = PageClient(self, token)
        try:
            yield client
        finally:
            client.close()

    def say(self, command: str, client: str, **fields: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, "client": client, **fields}) + "\n")
        self._process.stdin.flush()

    def begin(self, client: str, method: str, request: str, headers: dict[str, str]) -> PageStream:
        call = str(next(self._numbers))
        stream = self._calls[call] = PageStream(self, client, call)
        self.say("begin", client, call=call, method=method, request=request, headers=headers)
        return stream

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            heard = json.loads(line)
            if "ready" in heard:
                self._ready.set()
            else:
                self._calls[heard["call"]].hear(heard)


class PageStream:
    """One call of the page's client; `tests.servers.transports.Stream`."""

    def __init__(self, chromium: Chromium, client: str, call: str) -> None:
        self._chromium = chromium
        self._client = client
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def hear(self, what: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the test is over
            self._loop.call_soon_threadsafe(self._heard.put_nowait, what)

    async def read(self) -> ChatEvent | None:
        fields = await self.answer()
        return None if fields is None else ParseDict(fields, ChatEvent())

    async def answer(self) -> dict[str, Any] | None:
        """The next message as the page prints it; None at the end. PageFailure."""
        heard = await self._heard.get()
        if "failure" in heard:
            raise PageFailure(heard["failure"], heard["code"])
        event: dict[str, Any] | None = heard.get("event")
        return event

    async def cut(self) -> None:
        self._chromium.say("abort", self._client, call=self._call)


class PageClient:
    """Calls of one tab."""

    def __init__(self, chromium: Chromium, token: str) -> None:
        self._chromium = chromium
        self._token = token
        self._name = ""

    def call(
        self, request: StreamChatRequest | ResumeChatRequest | CancelTurnRequest, headers: dict[str, str]
    ) -> PageStream:
        """Begins the call that takes such a request."""
        if not self._name:
            self._name = uuid.uuid4().hex
            self._chromium.say("open", self._name, token=self._token)
        method = type(request).__name__.removesuffix("Request")
        return self._chromium.begin(self._name, method, MessageToJson(request, indent=None), headers)

    def close(self) -> None:
        if self._name:
            self._chromium.say("close", self._name)


@contextmanager
def chromium(url: str) -> Iterator[Chromium]:
    """A Chromium whose tabs are at the mesh of `url`. Skips the test where there is none, but not in CI."""
    if not os.environ.get("CI") and not shutil.which("chromium"):
        pytest.skip("There is no chromium: install it, or run `make test` as root.")
    process = subprocess.Popen(
        ["node", "--import", "tsx", "tests/bridge.ts", url],
        cwd=WEB,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Chromium(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_PATIENCE_S)

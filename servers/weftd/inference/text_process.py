"""A language model in a process of Weft's own, which the models' Python runs: numpy and torch stay apart."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import structlog

from weft.v1.error_reason_pb2 import (
    ERROR_REASON_MODEL_BROKEN,
    ERROR_REASON_MODEL_UNAVAILABLE,
    ERROR_REASON_OVERLOADED,
)
from weftd.children import RestartPause, kill_group
from weftd.errors import DeadlineExceeded, ResourceExhausted, Unavailable, WeftError
from weftd.inference.model_code import MODELS
from weftd.inference.port import TextPiece, TextRequest
from weftd.inference.refusals import refused_text
from weftd.rpc import caller

__all__ = ["ModelNotLoaded", "TextProcess"]

_CHILD: Final = Path(__file__).with_name("text_child.py")
_LINE_BYTES: Final = 1 << 22
# A model that takes longer is served when it is there; what cannot be loaded is known sooner.
_START_LIMIT_S: Final = 30.0
# It says something each second; the machine may be very busy.
_SILENCE_LIMIT_S: Final = 10.0
# The child gets no more of our environment, in which there may be keys.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES")

_log = structlog.get_logger()


class ModelNotLoaded(Exception):
    """The language model cannot be loaded. The message says why, and what to do."""


class TextProcess:
    """A `TextGenerator` whose process is started again, with back-off, whenever it dies."""

    def __init__(
        self, python: Path, directory: Path, *, device: str = "cpu", threads: int = 2, streams: int = 16
    ) -> None:
        """`python` has torch and transformers; `directory` holds a causal model. `open` before use.

        `streams` texts are written at once, and as many wait; one more is refused.
        """
        self.name = directory.resolve().name
        self._python = python
        self._model = {"directory": str(directory), "device": device, "threads": threads, "streams": streams}
        self._most = 2 * streams
        self._numbers = itertools.count(1)
        self._open: dict[int, _Text] = {}
        self._counts: list[asyncio.Future[dict[str, float]]] = []
        self._process: Process | None = None
        self._ready = asyncio.Event()
        self._failed = ""
        self._opened = False
        self._pause = RestartPause()
        self._keeping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that has loaded the model; None while there is none."""
        return self._process.pid if self._process is not None and self._ready.is_set() else None

    async def open(self) -> None:
        """Starts the process; returns when the model is loaded, or goes on loading after half a minute.

        Raises `ModelNotLoaded`.
        """
        self._keeping = asyncio.create_task(self._keep())
        waiting = asyncio.create_task(self._ready.wait())
        await asyncio.wait(
            {self._keeping, waiting}, timeout=_START_LIMIT_S, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        self._opened = True
        if self._keeping.done():
            self._keeping.result()

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def generate(self, request: TextRequest) -> AsyncGenerator[TextPiece, None]:
        if not self._ready.is_set():
            raise self._unavailable("is not loaded", retry_after_s=3.0)
        if len(self._open) >= self._most:
            raise self._overloaded()
        number, text = next(self._numbers), _Text()
        current = caller.current_or_none()
        self._open[number] = text
        try:
            self._send({"id": number, **asdict(request)})
            async with asyncio.timeout(current.time_left_s() if current else None):
                while True:
                    piece = await text.next()
                    yield piece
                    if piece.finish_reason:
                        return
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            if self._open.pop(number, None) is not None and not text.ended:
                self._send({"cancel": number})

    async def ping(self) -> None:
        if not self._ready.is_set():
            raise self._unavailable("is not loaded")

    async def counts(self) -> dict[str, float]:
        """What the model did since it was loaded: `Counts` of `causal.py`, and `open`. Raises Unavailable."""
        if not self._ready.is_set():
            raise self._unavailable("is not loaded")
        asked: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()
        self._counts.append(asked)
        self._send({"counts": True})
        return await asked

    async def _keep(self) -> None:
        """Runs the process, again and again. ModelNotLoaded where one ends before `open` has returned."""
        while True:
            self._failed = ""
            try:
                await self._run()
            except OSError as error:
                self._failed = f"{self._python} cannot be run ({error}). Run `make llm`."
            if not self._opened:
                raise ModelNotLoaded(self._failed)
            wait_s = self._pause.ended()
            _log.error("llm_ended", model_id=self.name, why=self._failed, restart_in_s=wait_s)
            await asyncio.sleep(wait_s)

    async def _run(self) -> None:
        environment = {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ}
        process = self._process = await asyncio.create_subprocess_exec(
            str(self._python),
            "-P",
            str(_CHILD),
            str(os.getpid()),
            str(MODELS / "llm" / "1"),
            stdin=PIPE,
            stdout=PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,
            env=environment | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        try:
            self._send(self._model)
            assert process.stdout is not None
            while line := await self._line(process.stdout):
                self._hear(json.loads(line))
        except TimeoutError:
            self._failed = f"The process of the language model said nothing for {_SILENCE_LIMIT_S:g} s."
        except ValueError:
            _log.error("llm_not_understood", model_id=self.name)
        finally:
            self._ready.clear()
            for text in self._open.values():
                text.put(self._broken("ended while it wrote"))
            for asked in self._counts:
                asked.cancel()
            self._counts.clear()
            await kill_group(process)
            if not self._failed:
                self._failed = (
                    f"The process of the language model ended with {process.returncode}: see the log."
                )

    async def _line(self, stdout: asyncio.StreamReader) -> bytes:
        """The next one; TimeoutError where a process that has loaded its model froze."""
        async with asyncio.timeout(_SILENCE_LIMIT_S if self._ready.is_set() else None):
            return await stdout.readline()

    def _hear(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": context}:
                _log.info("llm_loaded", model_id=self.name, context=context)
                self._ready.set()
                self._pause.started()
            case {"failed": why}:
                self._failed = str(why)
            case {"counts": counts}:
                if self._counts:
                    self._counts.pop(0).set_result(counts)
            case {"id": number, **rest} if text := self._open.get(number):
                text.put(self._told(rest))

    def _told(self, message: dict[str, Any]) -> TextPiece | WeftError:
        match message:
            case {"piece": piece}:
                return TextPiece(**piece)
            case {"busy": _}:
                return self._overloaded()
            case {"refused": why}:
                return refused_text(self.name, why) or self._broken("failed")
        return self._broken("failed")

    def _send(self, message: dict[str, Any]) -> None:
        """The child reads at once whatever it does else, so little waits here."""
        if (
            self._process is not None
            and self._process.stdin is not None
            and not self._process.stdin.is_closing()
        ):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _overloaded(self) -> WeftError:
        return ResourceExhausted(
            ERROR_REASON_OVERLOADED,
            f"The model {self.name} writes as much as it may at once. Try again in a second.",
            metadata={"model_id": self.name},
        )

    def _unavailable(self, what: str, retry_after_s: float = 1.0) -> WeftError:
        return Unavailable(
            ERROR_REASON_MODEL_UNAVAILABLE,
            f"The model {self.name} {what} just now. Try again in a few seconds.",
            retry_after_s=retry_after_s,
            metadata={"model_id": self.name},
        )

    def _broken(self, what: str) -> WeftError:
        return Unavailable(
            ERROR_REASON_MODEL_BROKEN,
            f"The model {self.name} {what}. Try again in a few seconds.",
            metadata={"model_id": self.name},
        )


class _Text:
    """What came of one text and was not read yet: one piece, which grows while nobody reads it."""

    def __init__(self) -> None:
        self.ended = False
        self._piece: TextPiece | None = None
        self._error: WeftError | None = None
        self._came = asyncio.Event()

    def put(self, new: TextPiece | WeftError) -> None:
        if isinstance(new, TextPiece):
            before = self._piece.text if self._piece else ""
            self._piece = replace(new, text=before + new.text)
            self.ended = bool(new.finish_reason)
        elif not self.ended:
            self._error, self.ended = new, True
        self._came.set()

    async def next(self) -> TextPiece:
        """The next piece. Raises the error that ended the text, after what came before."""
        await self._came.wait()
        if piece := self._piece:
            self._piece = None
            if self._error is None:
                self._came.clear()
            return piece
        assert self._error is not None
        raise self._error

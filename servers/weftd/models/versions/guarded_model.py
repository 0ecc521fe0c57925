"""Runs a version of a model in a process apart, so that it may crash, hang or grow as it likes.

While a version is checked this file lies beside it as `weft_check.py`, and Triton loads it in the place of
the version's own. Triton never frees a call whose Python process died under it: the model could not be
unloaded any more. So this one stays alive, and only its child, forked before anything was loaded, runs the
version: with limits of time, and of memory (three quarters of what is free at the start). What goes wrong is
told in one sentence after "weft-check:".

A version that calls other models of the server cannot be checked so, and is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Coroutine
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, cast

import triton_python_backend_utils as pb_utils

_MARK = "weft-check: "
_TEXT_LIMIT = 240
_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_PR_SET_PDEATHSIG = 1
_BEAT_S = 1.0


Tensors = list[tuple[str, Any]]


class _Failed(Exception): ...


class TritonPythonModel:
    """Triton's side: hands each request to the child, and its answers back."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: each["string_value"] for name, each in config["parameters"].items()}
        self._call_limit_s = float(values["weft_check_call_limit_s"])
        self._decoupled = config.get("model_transaction_policy", {}).get("decoupled", False)
        self._pipe, childs_end = Pipe()
        parent = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            self._pipe.close()
            _Child(childs_end, self._decoupled).run(parent, args, values["weft_check_file"])
        childs_end.close()
        try:
            self._receive("to load", float(values["weft_check_load_limit_s"]), time.monotonic())
        except _Failed as failure:
            raise pb_utils.TritonModelException(_MARK + str(failure)) from None

    def execute(self, requests: list[Any]) -> list[Any] | None:
        answers: list[Any] = []
        for request in requests:
            sender = request.get_response_sender() if self._decoupled else None
            began_s = time.monotonic()
            try:
                self._send([(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()])
                while (tensors := self._answer(sender, began_s)) is not None:
                    answer = pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in tensors])
                    if sender is None:
                        answers.append(answer)
                        break
                    sender.send(answer)
                else:
                    assert sender is not None  # only a stream ends so
                    sender.send(flags=_FINAL)
            except _Failed as failure:
                answer = pb_utils.InferenceResponse(error=pb_utils.TritonError(_MARK + str(failure)))
                if sender is None:
                    answers.append(answer)
                else:
                    sender.send(answer, flags=_FINAL)
        return None if self._decoupled else answers

    def _answer(self, sender: Any, began_s: float) -> Tensors | None:
        """The next one. Weft gives a silent stream up: it is told that this one lives."""
        left_s = self._call_limit_s
        while sender is not None and left_s > 0 and not self._pipe.poll(min(_BEAT_S, left_s)):
            sender.send(pb_utils.InferenceResponse([]))
            left_s = began_s + self._call_limit_s - time.monotonic()
        return self._receive("for a call", self._call_limit_s, began_s)

    def _send(self, inputs: Tensors) -> None:
        try:
            self._pipe.send(inputs)
        except OSError:
            raise _Failed(self._end()) from None

    def _receive(self, what: str, limit_s: float, began_s: float) -> Tensors | None:
        """What the child says next; _Failed where it says that it failed, or nothing in time."""
        left_s = began_s + limit_s - time.monotonic()
        if not self._pipe.poll(max(0, left_s)):
            self.finalize()
            raise _Failed(f"it took more than {limit_s:g} s {what}")
        try:
            failure, said = self._pipe.recv()
        except (EOFError, OSError):
            raise _Failed(self._end()) from None
        if failure:
            raise _Failed(failure)
        tensors: Tensors | None = said
        return tensors

    def _end(self) -> str:
        """How the child ended, whose end of the pipe is closed: so it is ending."""
        give_up_at = time.monotonic() + 1
        while time.monotonic() < give_up_at and not _ended(self._child):
            time.sleep(0.01)
        status = self.finalize()
        code = os.waitstatus_to_exitcode(status) if status is not None else None
        if code is None:
            return "its process has ended"
        return (
            f"its process was ended by signal {-code}"
            if code < 0
            else f"its process ended with status {code}"
        )

    def finalize(self) -> int | None:
        """Ends the child; the status it ended with, the first time."""
        if not self._child:
            return None
        child, self._child = self._child, 0
        os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]


def _ended(child: int) -> bool:
    return not child or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Child:
    """The version's side. Each message is (what failed or "", tensors or None at the end of a stream)."""

    def __init__(self, pipe: Connection, decoupled: bool) -> None:
        self._pipe = pipe
        self._decoupled = decoupled
        self._lock = threading.Lock()

    def run(self, parent: int, args: dict[str, str], file: str) -> NoReturn:
        """Never returns."""
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            _limit_memory()
            _cut_off_server()
            package = __name__.rpartition(".")[0]
            model = importlib.import_module(f"{package}.{Path(file).stem}").TritonPythonModel()
            if hasattr(model, "initialize"):
                model.initialize(args)
            self.say("", None)
            while True:
                self._call(model, self._pipe.recv())
        except EOFError:
            os._exit(0)
        except BaseException as error:
            self.say(_words(error), None)
            os._exit(1)

    def say(self, failure: str, said: Tensors | None) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send((failure, said))

    def _call(self, model: Any, inputs: Tensors) -> None:
        request = _Request(inputs, self)
        try:
            answers = model.execute([request])
            if inspect.isawaitable(answers):
                answers = asyncio.run(cast("Coroutine[Any, Any, Any]", answers))
            if self._decoupled:
                request.sender.ended.wait()
                return
            if not isinstance(answers, list) or len(answers) != 1:
                raise _Failed(f"its execute() gave no list of one answer but {type(answers).__name__}")
            self.say("", _tensors(answers[0]))
        except Exception as error:
            self.say(_words(error), None)


class _Request:
    """As much of Triton's request as models use."""

    def __init__(self, inputs: Tensors, child: _Child) -> None:
        self._inputs = [pb_utils.Tensor(name, array) for name, array in inputs]
        self.sender = _Sender(child)

    def inputs(self) -> list[Any]:
        return self._inputs

    def get_response_sender(self) -> _Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return False

    def request_id(self) -> str:
        return ""

    def correlation_id(self) -> int:
        return 0

    def parameters(self) -> str:
        return "{}"

    def flags(self) -> int:
        return 0

    def timeout(self) -> int:
        return 0


class _Sender:
    def __init__(self, child: _Child) -> None:
        self._child = child
        self.ended = threading.Event()

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: Any = None, flags: int = 0) -> None:
        failure = ""
        if response is not None:
            try:
                self._child.say("", _tensors(response))
            except _Failed as error:
                failure = _words(error)
        if failure or flags & _FINAL:
            if not self.ended.is_set():
                self._child.say(failure, None)
            self.ended.set()


class _Nothing:
    """Takes every call and keeps nothing of it."""

    def __getattr__(self, name: str) -> _Nothing:
        return self

    def __call__(self, *_: Any, **__: Any) -> _Nothing:
        return self


def _calls_others(*_: Any, **__: Any) -> NoReturn:
    raise _Failed("it calls other models of the server, and cannot be checked apart from it")


def _cut_off_server() -> None:
    """What talks with the server would wait for it for ever: its thread is not in this process."""
    pb_utils.Logger = pb_utils.MetricFamily = _Nothing()
    pb_utils.InferenceRequest = _calls_others


def _tensors(response: Any) -> Tensors:
    if response.has_error():
        raise _Failed(f"it answered with an error: {response.error().message()}")
    return [(tensor.name(), tensor.as_numpy()) for tensor in response.output_tensors()]


def _words(error: BaseException) -> str:
    said = str(error) if isinstance(error, _Failed) else f"{type(error).__name__}: {error}"
    return " ".join(said.split())[:_TEXT_LIMIT]


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):
        limit = _free_bytes() * 3 // 4
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _free_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) << 10
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return free

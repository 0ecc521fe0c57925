"""Versions published in a row under open streams and calls: does any fail, break off, or mix two versions?

    python -m bench.publish

Two models without torch, whose answers are a function of their version's files: one that answers calls, 50 a
second, and a language model with the tensors of `triton_models/llm`, of which 32 streams of `Generate` are
open at any time. 100 versions of each are published over ModelService into one real Triton, one after the
other, the two models side by side.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Final

import grpc
import numpy as np
import structlog

from tests.servers.model_versions import NUMBER_CONFIG, Versions, archive, number, serving, write_model
from tests.servers.triton import RunningTriton, running_triton
from weft.v1.common_pb2 import Message
from weft.v1.models_pb2 import GenerateRequest
from weftd.errors import WeftError
from weftd.triton.repository import SOURCE

VERSIONS: Final = 100
STREAMS: Final = 32
CALLS_PER_S: Final = 50
PIECES: Final = 60

# The text of version N is "N N N …", as many as MAX_TOKENS, one each 50 ms.
_WRITER: Final = """import threading, time
import numpy as np
import triton_python_backend_utils as pb_utils


def answer(text, finish_reason, written):
    return pb_utils.InferenceResponse([
        pb_utils.Tensor("TEXT", np.array([text.encode()], object)),
        pb_utils.Tensor("FINISH_REASON", np.array([finish_reason.encode()], object)),
        pb_utils.Tensor("PROMPT_TOKENS", np.array([1], np.int32)),
        pb_utils.Tensor("COMPLETION_TOKENS", np.array([written], np.int32)),
    ])


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.write, args=(request,), daemon=True).start()

    def write(self, request):
        sender = request.get_response_sender()
        most = pb_utils.get_input_tensor_by_name(request, "MAX_TOKENS")
        most = int(most.as_numpy()[0]) if most else 1
        for written in range(most):
            if sender.is_cancelled():
                break
            sender.send(answer("{code} ", "", written))
            time.sleep(0.05)
        sender.send(answer("", "length", most), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""

_BAD: Final = ("calls failed", "streams cut", "streams short", "streams mixed", "wrong version")


class Load:
    """Streams and calls, and what came of them. Version N of a model has the code N."""

    def __init__(self, versions: Versions) -> None:
        self._triton = versions.triton
        self._models, self._token = versions.stub, versions.member
        self.seen: Counter[str] = Counter()
        self.spans: set[int] = set()
        self.ended = asyncio.Event()

    async def stream(self) -> None:
        """One after the other, until the end; the last one is read to its end."""
        question = Message(role="user", content="Which version are you?")
        request = GenerateRequest(messages=[question], max_tokens=PIECES)
        while not self.ended.is_set():
            said, version = "", ""
            try:
                async for event in self._models.Generate(request, metadata=self._token):
                    said += event.content
                    version = event.model_version
            except grpc.aio.AioRpcError as error:
                self.seen["streams cut"] += 1
                print("cut:", error.code().name, error.details())
            pieces = said.split()
            self.seen["streams"] += 1
            self.seen["streams short"] += len(pieces) != PIECES
            self.seen["streams mixed"] += len(set(pieces)) != 1
            self.seen["wrong version"] += set(pieces) != {version}

    async def calls(self) -> None:
        """At a fixed rate, answered or not."""
        began_s, running = time.perf_counter(), set[asyncio.Task[None]]()
        made = 0
        while not self.ended.is_set():
            made += 1
            running.add(task := asyncio.create_task(self._call()))
            task.add_done_callback(running.discard)
            await asyncio.sleep(max(0, began_s + made / CALLS_PER_S - time.perf_counter()))
        await asyncio.gather(*running)

    async def _call(self) -> None:
        self.seen["calls"] += 1
        try:
            answer = await self._triton.infer("number", {"N": np.array([1], np.int32)})
        except WeftError as error:
            self.seen["calls failed"] += 1
            print("failed:", error.message, error.metadata)
            return
        self.spans.add(int(answer.version))
        self.seen["wrong version"] += int(answer.outputs["CODE"][0]) != int(answer.version)


def code(model: str, version: int) -> bytes:
    """The file `model.py` of a version."""
    return number(version) if model == "number" else _WRITER.replace("{code}", str(version)).encode()


def write_models(directory: Path) -> Path:
    """A repository with both models, and their version 1."""
    write_model(directory, "number", NUMBER_CONFIG, code("number", 1))
    write_model(directory, "llm", (SOURCE / "llm" / "config.pbtxt").read_text(), code("llm", 1))
    return directory


async def publish(versions: Versions, model: str, took_s: list[float]) -> None:
    """VERSIONS of a model, and that each answers the next call."""
    for version in range(2, VERSIONS + 2):
        began_s = time.perf_counter()
        done = await versions.publish(model, archive({"model.py": code(model, version)}))
        took_s.append(time.perf_counter() - began_s)
        assert done.version == version, done
        if model == "number":
            assert await versions.called() == (version, version)


async def measure(server: RunningTriton, directory: Path) -> int:
    async with serving(server, directory, llm=True) as versions:
        load, took_s = Load(versions), list[float]()
        tasks = [asyncio.create_task(load.stream()) for _ in range(STREAMS)]
        tasks.append(asyncio.create_task(load.calls()))
        began_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for model in ("number", "llm"):
                    group.create_task(publish(versions, model, took_s))
        finally:
            load.ended.set()
            await asyncio.gather(*tasks)
        seen, spent_s = load.seen, time.perf_counter() - began_s
        print(f"{len(took_s)} versions in {spent_s:.0f} s, {median(took_s):.2f} s each (p50)")
        print(f"{seen['calls']} calls, answered by {len(load.spans)} versions; {seen['streams']} streams")
        for name in _BAD:
            print(f"{name:15} {seen[name]}")
        print(f"processes left  {await asyncio.to_thread(_processes_left, server)} of 2 models")
        return sum(seen[name] for name in _BAD)


def _processes_left(server: RunningTriton) -> int:
    """Of the two models; those of old versions end a second after their last stream."""
    give_up_at = time.monotonic() + 10
    while True:
        left = len(server.stubs("number")) + len(server.stubs("llm"))
        if left == 2 or time.monotonic() > give_up_at:
            return left
        time.sleep(0.1)


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        with running_triton(write_models(directory / "source"), directory / "triton") as server:
            raise SystemExit(1 if asyncio.run(measure(server, directory)) else 0)


if __name__ == "__main__":
    main()

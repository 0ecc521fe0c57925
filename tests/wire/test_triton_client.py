"""Calls to the real Triton: what comes back, how they end, and what they say when something is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.servers.triton import RunningTriton, running_triton
from tests.servers.triton_models import COUNT, ECHO, SLOW, VERSIONED, write_model
from weft.v1 import error_reason_pb2 as reasons
from weftd.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    WeftError,
)
from weftd.inference.triton import client
from weftd.inference.triton.client import Answer, Triton
from weftd.rpc import caller

_CALLER = caller.Caller("acme", "someone", frozenset(), "request-1", "token", 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    directory = tmp_path_factory.mktemp("triton")
    models = {kind: write_model(kind, directory / kind) for kind in (ECHO, SLOW, COUNT, VERSIONED)}
    with running_triton(models, directory) as running:
        yield running


@pytest.fixture
async def triton(server: RunningTriton) -> AsyncIterator[Triton]:
    opened = Triton(server.address)
    yield opened
    await opened.close()


def _text(*texts: str) -> dict[str, np.ndarray]:
    return {"TEXT": np.array([[text] for text in texts], object)}


def _count(n: int, pause_ms: float = 5) -> dict[str, np.ndarray]:
    return {"N": np.array([n], np.int32), "PAUSE_MS": np.array([pause_ms], np.float32)}


async def _counts(triton: Triton) -> dict[str, int]:
    async with aclosing(triton.stream(COUNT, _count(0))) as answers:
        (answer,) = [each async for each in answers]
    return {name: int(value[0]) for name, value in answer.outputs.items()}


async def _until(what: object, seconds: float = 10) -> None:
    ends = time.monotonic() + seconds
    while not await what():  # type: ignore[operator]
        assert time.monotonic() < ends, "it did not come about"
        await asyncio.sleep(0.01)


async def test_values_come_back_as_they_were_sent(triton: Triton) -> None:
    texts = ["", "Weft", "织物 🧵", "long " * 20_000, "a\0b"]
    answer = await triton.infer(ECHO, _text(*texts))
    assert [each.decode() for each in answer.outputs["TEXT_BACK"].flat] == texts
    assert answer.version == "1"
    numbers = np.array([[1.25], [-3.0]], np.float32)
    answer = await triton.infer(VERSIONED, {"X": numbers}, outputs=("Y",))
    assert answer.outputs.keys() == {"Y"}
    assert answer.outputs["Y"].tolist() == [[1001.25], [997.0]]


async def test_a_stream_ends_after_its_last_answer(triton: Triton) -> None:
    async with aclosing(triton.stream(COUNT, _count(20, 1))) as answers:
        assert [int(each.outputs["I"][0]) async for each in answers] == list(range(20))


async def test_streams_side_by_side_are_not_mixed(triton: Triton) -> None:
    async def numbers(n: int) -> list[int]:
        async with aclosing(triton.stream(COUNT, _count(n, 1))) as answers:
            return [int(each.outputs["I"][0]) async for each in answers]

    sizes = range(1, 33)
    assert await asyncio.gather(*map(numbers, sizes)) == [list(range(n)) for n in sizes]


@pytest.mark.parametrize("how", ["closed", "cancelled"])
async def test_a_stream_that_nobody_reads_stops_the_model(triton: Triton, how: str) -> None:
    before = await _counts(triton)
    begun = asyncio.Event()

    async def read(stop_after: int) -> None:
        async with aclosing(triton.stream(COUNT, _count(100_000, 1))) as answers:
            async for each in answers:
                begun.set()
                if each.outputs["I"][0] == stop_after:
                    return

    if how == "closed":
        await read(3)
    else:
        reading = asyncio.create_task(read(-1))
        await begun.wait()
        reading.cancel()
        await asyncio.wait([reading])
        assert reading.cancelled()

    async def stopped() -> bool:
        now = await _counts(triton)
        return now["RUNNING"] == 0 and now["CANCELLED"] == before["CANCELLED"] + 1

    await _until(stopped)
    made = (await _counts(triton))["MADE"]
    await asyncio.sleep(0.05)
    assert (await _counts(triton))["MADE"] == made


async def test_a_long_pause_of_a_model_that_lives_is_no_silence(
    triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_SILENCE_LIMIT_S", 1.5)
    async with aclosing(triton.stream(COUNT, _count(1, 2_500))) as answers:
        assert len([each async for each in answers]) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_an_unknown_model_is_unavailable(triton: Triton, streams: bool) -> None:
    with pytest.raises(Unavailable) as raised:
        await _any_answer(triton, "nobody", streams)
    assert raised.value.reason == reasons.ERROR_REASON_BACKEND_UNAVAILABLE
    assert raised.value.retry_after_ms > 0


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"TEXT": np.array([[1.0]], np.float32)},
        {"TEXT": np.array(["flat"], object)},
        {"TEXT": np.array([["x"]] * 9, object)},
        {"OTHER": np.array([["x"]], object)},
    ],
    ids=["nothing", "wrong type", "wrong shape", "more than a batch", "wrong name"],
)
async def test_a_wrong_input_is_refused(triton: Triton, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        await triton.infer(ECHO, inputs)
    assert raised.value.reason == reasons.ERROR_REASON_MODEL_REFUSED


async def test_a_model_that_fails_says_so(triton: Triton) -> None:
    with pytest.raises(Unavailable) as raised:
        await triton.infer(ECHO, _text("fail"))
    assert raised.value.reason == reasons.ERROR_REASON_MODEL_BROKEN
    assert "as asked" in raised.value.detail
    assert "as asked" not in raised.value.message


async def test_a_full_queue_refuses_at_once(triton: Triton) -> None:
    calls = [asyncio.create_task(triton.infer(SLOW, _text("sleep 0.5"))) for _ in range(12)]
    started = time.monotonic()
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert time.monotonic() - started < 0.45
    error = done.pop().exception()
    assert isinstance(error, ResourceExhausted)
    assert error.reason == reasons.ERROR_REASON_OVERLOADED
    assert error.retry_after_ms > 0
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, Answer) for each in outcomes) >= 3
    assert all(isinstance(each, (Answer, ResourceExhausted)) for each in outcomes)


@pytest.mark.parametrize("streams", [False, True])
async def test_the_callers_deadline_is_triton_s(triton: Triton, streams: bool) -> None:
    caller.enter(replace(_CALLER, deadline=time.monotonic() + 0.2))
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        if streams:
            async with aclosing(triton.stream(COUNT, _count(1000, 100))) as answers:
                async for _ in answers:
                    pass
        else:
            await triton.infer(SLOW, _text("sleep 1.5"))
    assert 0.15 < time.monotonic() - started < 1


async def test_a_server_that_froze_is_given_up(
    server: RunningTriton, triton: Triton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_ANSWER_LIMIT_S", 0.3)
    monkeypatch.setattr(client, "_SILENCE_LIMIT_S", 0.3)
    monkeypatch.setattr(Triton._admin, "__defaults__", (0.3,))
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for streams in (False, True):
            with pytest.raises(Unavailable):
                await _any_answer(triton, COUNT if streams else ECHO, streams)
        async with asyncio.timeout(5):
            # More than a connection takes that nobody reads from.
            large = {**_count(1), "TEXT": np.array(["x" * (64 << 20)], object)}
            with pytest.raises(Unavailable):
                await _any_answer(triton, COUNT, True, large)
            with pytest.raises(Unavailable):
                await triton.index()
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("streams", [False, True])
async def test_a_dead_server_ends_what_runs_and_refuses_what_comes(tmp_path: Path, streams: bool) -> None:
    models = {kind: write_model(kind, tmp_path / kind) for kind in (ECHO, COUNT)}
    with running_triton(models, tmp_path) as running:
        triton = Triton(running.address)
        assert await triton.is_ready(ECHO)
        model = COUNT if streams else ECHO
        inputs = _count(1000, 100) if streams else _text("sleep 30")
        call = asyncio.create_task(_any_answer(triton, model, streams, inputs))
        await asyncio.sleep(0.3)
        os.kill(running.pid, signal.SIGKILL)
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(Unavailable) as raised:
                await call
            assert raised.value.retry_after_ms > 0
            assert time.monotonic() - started < 2
            call = asyncio.create_task(_any_answer(triton, model, streams))
        with pytest.raises(WeftError):
            await call
        assert not await triton.is_ready(ECHO)
        await triton.close()


@pytest.mark.parametrize("streams", [False, True])
async def test_a_dead_stub_ends_what_runs_and_refuses_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: bool
) -> None:
    monkeypatch.setattr(client, "_SILENCE_LIMIT_S", 1.5)
    model = COUNT if streams else ECHO
    with running_triton({model: write_model(model, tmp_path / model)}, tmp_path) as running:
        triton = Triton(running.address)
        inputs = _count(1000, 100) if streams else _text("sleep 30")
        call = asyncio.create_task(_any_answer(triton, model, streams, inputs))
        await asyncio.sleep(0.3)
        (stub,) = running.stubs(model)
        stub.kill()
        for _ in range(2):
            with pytest.raises(Unavailable) as raised:
                await asyncio.wait_for(call, 5)
            assert raised.value.retry_after_ms > 0
            call = asyncio.create_task(_any_answer(triton, model, streams))
        with pytest.raises(Unavailable):
            await call
        await triton.close()


async def _any_answer(
    triton: Triton, model: str, streams: bool, inputs: dict[str, np.ndarray] | None = None
) -> Answer:
    """The last one."""
    if not streams:
        return await triton.infer(model, inputs or _text("x"))
    async with aclosing(triton.stream(model, inputs or _count(3))) as answers:
        return [each async for each in answers][-1]

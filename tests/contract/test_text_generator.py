"""A language model on a real Triton and in a process of Weft's own: one text, one set of rules."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.servers.tiny_llm import CONTEXT, llm_counts, llm_on_triton, need_llm, write_tiny_llm
from tests.servers.triton import MODELS_PYTHON, RunningTriton
from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_REFUSED, ERROR_REASON_OVERLOADED
from weftd.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, Unavailable
from weftd.inference import text_process
from weftd.inference.port import TextGenerator, TextMessage, TextPiece, TextRequest
from weftd.inference.text_process import ModelNotLoaded, TextProcess
from weftd.inference.triton.client import Triton
from weftd.inference.triton.generator import TritonGenerator
from weftd.rpc import caller

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUESTION = [TextMessage(role="user", content="年假 how many days ahead?")]
# For one try on a machine whose cores are all busy; bench/cancel_llm.py measures.
STOPPED_WITHIN_S = 0.5
_BEHIND_S = 0.3

Counts = Callable[[], Awaitable[dict[str, float]]]


@dataclass
class Subject:
    """A generator, what its model's loop did, and the process that the model is in."""

    generator: TextGenerator
    counts: Counts
    pid: Callable[[], int]

    async def settled(self) -> dict[str, float]:
        """The counts of what is over: Triton's are a tenth of a second behind."""
        await asyncio.sleep(_BEHIND_S)
        return await self.counts()

    async def stopped_since(self, left_at: float) -> dict[str, float]:
        """The counts once a text that was cancelled has left the batch."""
        async with asyncio.timeout(20):
            while (counts := await self.counts())["stopped_at"] < left_at:
                await asyncio.sleep(0.02)
        return counts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_llm()
    return write_tiny_llm(tmp_path_factory.mktemp("llm") / "tiny")


@pytest.fixture(scope="module")
def triton(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with llm_on_triton(tiny, tmp_path_factory.mktemp("triton")) as running:
        yield running


@pytest_asyncio.fixture(params=["triton", "process"], loop_scope="module", scope="module")
async def subject(request: pytest.FixtureRequest, tiny: Path) -> AsyncIterator[Subject]:
    if request.param == "triton":
        running: RunningTriton = request.getfixturevalue("triton")
        client = Triton(running.address)
        yield Subject(
            TritonGenerator(client),
            lambda: asyncio.to_thread(llm_counts, running.metrics_url),
            lambda: running.stubs("llm")[0].pid,
        )
        await client.close()
        return
    generator = TextProcess(MODELS_PYTHON, tiny)
    await generator.open()
    yield Subject(generator, generator.counts, lambda: generator.pid or 0)
    await generator.close()


async def written(generator: TextGenerator, request: TextRequest) -> list[TextPiece]:
    async with aclosing(generator.generate(request)) as pieces:
        return [piece async for piece in pieces]


def text_of(pieces: list[TextPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def asked(**more: object) -> TextRequest:
    return TextRequest(**{"messages": QUESTION, "temperature": 0.0, "max_tokens": 60, **more})  # type: ignore[arg-type]


REFERENCE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
directory, messages = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory)
chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
prompt = tokenizer.encode(chat, add_special_tokens=False)
tokens = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0][len(prompt):]
print(json.dumps([len(prompt), tokenizer.decode(tokens)]))
"""


async def test_the_likeliest_text_is_that_of_transformers(subject: Subject, tiny: Path) -> None:
    command = [str(MODELS_PYTHON), "-c", REFERENCE, str(tiny), json.dumps(QUESTION)]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    prompt_tokens, text = json.loads(ran.stdout)
    pieces = await written(subject.generator, asked())
    assert text_of(pieces) == text
    last = pieces[-1]
    assert (last.finish_reason, last.prompt_tokens, last.completion_tokens) == ("length", prompt_tokens, 60)
    assert [piece.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)


async def test_texts_of_one_batch_do_not_mix(subject: Subject) -> None:
    questions = [[TextMessage(role="user", content=f"第{n}个问题 number {n}")] for n in range(12)]
    alone = [text_of(await written(subject.generator, asked(messages=each))) for each in questions]
    among = [written(subject.generator, asked(messages=each)) for each in questions]
    others = [written(subject.generator, asked(temperature=0.9, top_p=0.8)) for _ in range(8)]
    together, drawn = await asyncio.gather(asyncio.gather(*among), asyncio.gather(*others))
    assert [text_of(each) for each in together] == alone
    assert len({text_of(each) for each in drawn}) > 1


async def test_a_nucleus_of_almost_nothing_is_the_likeliest_text(subject: Subject) -> None:
    likeliest = text_of(await written(subject.generator, asked()))
    assert text_of(await written(subject.generator, asked(temperature=1.0, top_p=1e-6))) == likeliest


@pytest.mark.parametrize("temperature", [1e-40, 1e-12])
async def test_the_coldest_text_is_the_likeliest_and_breaks_none_beside_it(
    subject: Subject, temperature: float
) -> None:
    likeliest = text_of(await written(subject.generator, asked()))
    beside = asyncio.create_task(written(subject.generator, asked()))
    cold = await written(subject.generator, asked(temperature=temperature))
    assert text_of(cold) == text_of(await beside) == likeliest


async def test_a_text_that_was_begun_is_gone_on_with(subject: Subject) -> None:
    whole = text_of(await written(subject.generator, asked()))
    rest = await written(subject.generator, asked(prefix=whole[:40], max_tokens=20))
    assert rest[-1].completion_tokens == 20
    assert not text_of(rest).startswith(whole[:10])
    again = await written(subject.generator, asked(prefix=whole[:40] + text_of(rest)[:1], max_tokens=5))
    assert again[-1].prompt_tokens > rest[-1].prompt_tokens - 2


async def test_a_stop_text_ends_it_and_never_shows_in_part(subject: Subject) -> None:
    whole = text_of(await written(subject.generator, asked()))
    stop = whole[20:26]
    pieces = await written(subject.generator, asked(stop=("never", stop)))
    assert text_of(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert pieces[-1].completion_tokens < 60


async def test_the_end_token_ends_it(tiny: Path, tmp_path: Path) -> None:
    generator = TextProcess(MODELS_PYTHON, write_tiny_llm(tmp_path / "short", endless=False))
    await generator.open()
    try:
        pieces = await written(generator, asked(temperature=1.0, max_tokens=1000))
    finally:
        await generator.close()
    assert pieces[-1].finish_reason == "stop"
    assert "<|" not in text_of(pieces)


async def test_the_context_is_the_most_that_is_written(subject: Subject) -> None:
    content = "年" * (CONTEXT - 300)
    pieces = await written(
        subject.generator, asked(messages=[{"role": "user", "content": content}], max_tokens=32_768)
    )
    assert pieces[-1].prompt_tokens + pieces[-1].completion_tokens == CONTEXT
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize("characters", [CONTEXT * 4, 1_000_000])
async def test_a_prompt_that_is_too_long_is_refused_plainly(subject: Subject, characters: int) -> None:
    with pytest.raises(FailedPrecondition, match=f"{CONTEXT}.*Send fewer") as refusal:
        await written(subject.generator, asked(messages=[{"role": "user", "content": "年?" * characters}]))
    assert refusal.value.reason == ERROR_REASON_MODEL_REFUSED


async def test_who_leaves_stops_the_loop_at_once(subject: Subject) -> None:
    before = await subject.settled()
    async with aclosing(subject.generator.generate(asked(max_tokens=8000))) as pieces:
        for _ in range(5):
            last = await anext(pieces)
        left_at = time.time()
    after = await subject.stopped_since(left_at)
    assert after["cancelled"] == before["cancelled"] + 1
    assert after["stopped_at"] - left_at < STOPPED_WITHIN_S
    assert last.completion_tokens <= after["tokens"] - before["tokens"] < 4000
    later = await subject.settled()
    assert (later["tokens"], later["late_tokens"], later["open"]) == (after["tokens"], 0, 0)
    assert len(text_of(await written(subject.generator, asked()))) > 60


async def test_a_passed_deadline_stops_it(subject: Subject) -> None:
    began_at = time.time()
    claims = {"tenant": "acme", "subject": "tester", "roles": frozenset[str](), "request_id": "r"}
    caller.enter(
        caller.Caller(**claims, token="", token_expires_at=0, deadline=time.monotonic() + 0.3)  # type: ignore[arg-type]
    )
    with pytest.raises(DeadlineExceeded):
        await written(subject.generator, asked(max_tokens=8000))
    assert (await subject.stopped_since(began_at + 0.3))["stopped_at"] < began_at + 0.3 + STOPPED_WITHIN_S


async def test_more_than_may_wait_is_refused_at_once(subject: Subject) -> None:
    texts = [asyncio.create_task(written(subject.generator, asked(max_tokens=400))) for _ in range(40)]
    ends = await asyncio.gather(*texts, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, ResourceExhausted)]
    assert sum(isinstance(end, list) for end in ends) == 32
    assert len(refused) == 8
    assert all(each.reason == ERROR_REASON_OVERLOADED and each.retry_after_s for each in refused)


async def test_a_process_that_dies_is_said_and_comes_back(tiny: Path) -> None:
    generator = TextProcess(MODELS_PYTHON, tiny)
    await generator.open()
    try:
        writing = asyncio.create_task(written(generator, asked(max_tokens=8000)))
        await asyncio.sleep(0.3)
        assert generator.pid
        psutil.Process(generator.pid).kill()
        with pytest.raises(Unavailable) as broke:
            await writing
        assert broke.value.retry_after_s
        with pytest.raises(Unavailable):
            await written(generator, asked())
        async with asyncio.timeout(30):
            while generator.pid is None:
                await asyncio.sleep(0.05)
        assert (await written(generator, asked()))[-1].finish_reason == "length"
        process = psutil.Process(generator.pid)
    finally:
        await generator.close()
    assert not process.is_running()


async def test_a_process_that_froze_is_given_up_and_comes_back(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_process, "_SILENCE_LIMIT_S", 3.0)
    generator = TextProcess(MODELS_PYTHON, tiny)
    await generator.open()
    try:
        assert await written(generator, asked())
        frozen = psutil.Process(generator.pid)
        frozen.suspend()
        async with asyncio.timeout(10):
            with pytest.raises(Unavailable):
                await written(generator, asked())
        async with asyncio.timeout(60):
            while generator.pid in (None, frozen.pid):
                await asyncio.sleep(0.1)
        assert not frozen.is_running()
        assert await written(generator, asked())
    finally:
        await generator.close()


async def test_what_cannot_be_loaded_is_said(tiny: Path, tmp_path: Path) -> None:
    for python, directory, what in [
        (tmp_path / "python", tiny, "make llm"),
        (MODELS_PYTHON, tmp_path, "no causal model"),
    ]:
        generator = TextProcess(python, directory)
        with pytest.raises(ModelNotLoaded, match=what):
            await generator.open()
        await generator.close()

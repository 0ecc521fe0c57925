"""The extractive model: a `LanguageModel` that needs no network and never invents."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from weft.v1.common_pb2 import Reference, Usage
from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_CANNOT_CONTINUE
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.errors import FailedPrecondition
from weftd.inference.port import Embedder

from ..port import DEFAULT_MAX_TOKENS
from .compose import NO_ANSWER, NO_PASSAGES, compose
from .evidence import Evidence, gather
from .markdown import close_fence
from .question import Question, read_question
from .ranking import Cosines, Ranked, rank
from .small_talk import reply, small_talk
from .units import Passage, Unit, take_apart

# What is read of the passages, the most relevant first: a bound on the work, far above what five need.
_MAX_READ_CHARACTERS = 60_000
_SHORTLIST = 6
_MAX_EMBEDDED_CHARACTERS = 400
# Log-odds above the threshold from which an answer is given without hesitation.
_SURE = 0.7
_PIECE_CHARACTERS = 10
_TOKEN = re.compile(r"\[\d+\]|[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|\w+|\s+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is known before the embedder was asked."""

    question: Question
    passages: tuple[Passage, ...]
    evidence: Evidence
    ranked: list[Ranked]


@dataclass(frozen=True, slots=True)
class _Answer:
    """`prompt_tokens`: counted here, off the event loop."""

    text: str
    finish_reason: str
    prompt_tokens: int


class ExtractiveModel:
    """Answers with the best sentences of the passages, each with its source.

    The same request gives the same text, so `prefix` is skipped where the text begins with it, and refused
    otherwise. `max_tokens` bounds the whole text, `prefix` included. A token is a word, a Chinese character
    or a mark.
    """

    provider = "extractive"
    can_continue = True

    def __init__(self, model_id: str = "extractive", *, embedder: Embedder | None = None) -> None:
        """`embedder` sharpens the choice of sentences in the languages that it knows."""
        self.model_id = model_id
        self._embedder = embedder

    async def close(self) -> None: ...

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        answer = await self._answer(request)
        if not answer.text.startswith(request.prefix):
            raise FailedPrecondition(
                ERROR_REASON_MODEL_CANNOT_CONTINUE,
                "This model would not write the text that was begun. Ask again without `prefix`.",
                metadata={"model_id": self.model_id},
            )
        text = answer.text[len(request.prefix) :]
        for piece in _pieces(text):
            yield GenerateEvent(type="delta", content=piece)
            await asyncio.sleep(0)  # others come in between, a cancel too
        written = _count(text)
        usage = Usage(
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=written,
            total_tokens=answer.prompt_tokens + written,
        )
        yield GenerateEvent(type="done", usage=usage, finish_reason=answer.finish_reason)

    async def answerability(self, request: GenerateRequest) -> float:
        """Log-odds, against the threshold, that the passages hold the answer; infinite where that is sure."""
        draft = await asyncio.to_thread(_draft, request)
        if isinstance(draft, _Answer):
            return -math.inf if draft.finish_reason == "no_answer" else math.inf
        return _score(draft, await self._cosines(request, draft))

    async def _answer(self, request: GenerateRequest) -> _Answer:
        draft = await asyncio.to_thread(_draft, request)
        if isinstance(draft, _Answer):
            return draft
        cosines = await self._cosines(request, draft)
        return await asyncio.to_thread(_finish, request, draft, cosines)

    async def _cosines(self, request: GenerateRequest, draft: _Draft) -> Cosines:
        if self._embedder is None or not self._embedder.supports(draft.question.text):
            return {}
        return await shortlist_cosines(self._embedder, draft.question, request.passages, draft.ranked)


async def shortlist_cosines(
    embedder: Embedder, question: Question, references: Sequence[Reference], ranked: Sequence[Ranked]
) -> Cosines:
    """The cosines of the question with the best units."""
    units = [entry.unit for entry in ranked[:_SHORTLIST]]
    texts = [_with_name(references[unit.passage], unit) for unit in units]
    vectors = await embedder.embed([question.text, *texts])
    values = (vectors[1:] @ vectors[0]).tolist()
    return {(unit.passage, unit.order): value for unit, value in zip(units, values, strict=True)}


def _draft(request: GenerateRequest) -> _Draft | _Answer:
    """All that can be known without vectors; an answer at once where none of it is needed."""
    asked = request.messages[-1].content
    talk = small_talk(asked)
    if talk is not None:
        return _cut(request, reply(talk, asked), "small_talk")
    question = read_question(request.messages)
    passages = tuple(take_apart(index, passage) for index, passage in enumerate(_readable(request.passages)))
    ranked = rank(question, passages)
    if not ranked:
        return _cut(request, NO_PASSAGES[question.chinese], "no_answer")
    return _Draft(question, passages, gather(question, passages), ranked)


def _finish(request: GenerateRequest, draft: _Draft, cosines: Cosines) -> _Answer:
    question = draft.question
    score = _score(draft, cosines)
    if score < 0 and question.form != "overview":
        return _cut(request, NO_ANSWER[question.chinese], "no_answer")
    ranked = rank(question, draft.passages, cosines) if cosines else draft.ranked
    hesitant = score < _SURE and question.form != "overview"
    text = compose(question, draft.passages, ranked, hesitant=hesitant)
    return _cut(request, text, "stop")


def _score(draft: _Draft, cosines: Cosines) -> float:
    return draft.evidence.score(max(cosines.values()) if cosines else None)


def _readable(passages: Sequence[Reference]) -> Iterator[Reference]:
    """The passages, as far as they are read."""
    left = _MAX_READ_CHARACTERS
    for passage in passages:
        if left <= 0:
            return
        if len(passage.content) > left:
            cut = Reference()
            cut.CopyFrom(passage)
            cut.content = passage.content[:left]
            passage = cut
        left -= len(passage.content)
        yield passage


def _with_name(passage: Reference, unit: Unit) -> str:
    """What is embedded of a unit: with what it is about, which a sentence by itself seldom says."""
    return f"{passage.heading or passage.name}\n{unit.text[:_MAX_EMBEDDED_CHARACTERS]}"


def _cut(request: GenerateRequest, text: str, finish_reason: str) -> _Answer:
    """`text`, cut after `max_tokens`; a block of code that was cut is closed."""
    texts = [message.content for message in request.messages]
    texts += [passage.content for passage in _readable(request.passages)]
    prompt_tokens = sum(map(_count, texts))
    most = request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS
    written = 0
    for match in _TOKEN.finditer(text):
        written += not match.group().isspace()
        if written > most:
            return _Answer(close_fence(text[: match.start()].rstrip()), "length", prompt_tokens)
    return _Answer(text, finish_reason, prompt_tokens)


def _pieces(text: str) -> Iterator[str]:
    """A few words or characters at a time; a citation is never cut."""
    piece = ""
    for token in _TOKEN.findall(text):
        piece += token
        if len(piece) >= _PIECE_CHARACTERS:
            yield piece
            piece = ""
    if piece:
        yield piece


def _count(text: str) -> int:
    return sum(not token.isspace() for token in _TOKEN.findall(text))

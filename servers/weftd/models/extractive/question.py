"""What a question asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import rjieba

from weft.v1.common_pb2 import Message
from weftd.text.language import is_chinese
from weftd.text.tokens import fold, search_tokens

from .small_talk import without_greeting
from .words import is_silent, stem, stems, weight, weights

Form = Literal["fact", "list", "explain", "overview"]

_MAX_CHARACTERS = 2000
# An earlier question's words against those of the answer to it, and all of them against the question's own.
_EARLIER_ANSWER_WEIGHT = 0.3
_EARLIER_SHARE = 0.6
_MAX_EARLIER_CHARACTERS = 300
# A question that leans on what was said before has few words of its own, or opens with a connective.
_FEW_WORDS = 3

_NAMES = re.compile(
    r"\b[A-Z][\w'’&.-]*(?:\s+(?:(?:of|the|and|de|la|for|in|on|&)\s+)*[A-Z0-9][\w'’&.-]*)*"
    r"|[\"“][^\"”]+[\"”]|\b\d[\w,.–-]*"
)
_LEANS = re.compile(
    r"它|他|她|其(?!他)|该|这个|那个|这些|那些|这里|那里|此"
    r"|\b(?:it|its|they|them|their|he|him|his|she|her|this|that|these|those|there)\b",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"^\W*(?:(?:and|but|so|also|what about|how about)\b|那么?(?!不)|还有|以及|另外|然后)|呢\W*$",
    re.IGNORECASE,
)
_OVERVIEW = re.compile(
    r"(?:总结|概括|概述|归纳).{0,6}(?:文档|文件|资料|内容|文章|报告|全文)"
    r"|(?:文档|文件|资料|文章|报告)(?:主要)?(?:讲|说|写|是关于|的?(?:主要)?内容)"
    r"|\bsummar\w+\s+(?:of\s+)?(?:the|this|these|my|all)?\s*(?:document|file|text|article|report|content)"
    r"|^\W*what does [\"“].{1,255}[\"”] say\W*$|^[\"“].{1,255}[\"”](?:主要)?[讲说]了?(?:些|的是)?什么\W*$"
    r"|\bwhat\b.{0,12}\b(?:document|file|text|article|report)s?\b.{0,8}\b(?:about|say|contain)",
    re.IGNORECASE,
)
_EXPLAIN = re.compile(
    r"介绍|解释|讲讲|说说|谈谈|描述|说明一?下|概述|总结|什么是|是什么(?:意思|东西)?\W*$|指的?是?什么"
    r"|为什么|为何|怎么|怎样|如何|原理"
    r"|\b(?:explain|describe|introduce|overview|summar\w+|tell me about|how does|how do|how to|how can|why)\b"
    r"|^\W*what(?:'s| is| are)(?: an?| the)?(?: \w+){1,3}\W*$",
    re.IGNORECASE,
)
_LIST = re.compile(
    r"哪些|哪几|有什么|步骤|分别|列出|列举|\b(?:list|which ones|what are|steps|name (?:all|the|some))\b",
    re.IGNORECASE,
)

_NUMBER = (
    r"\d|[零一二两三四五六七八九十百千万亿]+"
    r"|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|hundred|thousand|million|billion)\b"
)
_ASKED_FOR = (
    (
        r"何时|什么时候|哪一?年|哪天|哪一天|年份|时间|\bwhen\b|\b(?:what|which) (?:year|date|day|month"
        r"|century|decade)\b",
        r"\d{3,4}|\d+\s*[年月日世]|[一二三四五六七八九十]+[年月]|\b(?:January|February|March|April|May"
        r"|June|July|August|September"
        r"|October|November|December|century|[Mm]onday|[Ff]riday|today|yesterday)\b",
    ),
    (r"多少|几[个位名次种年月天岁人]|\bhow (?:many|much|old|tall|long|far|big|large|high|often)\b", _NUMBER),
    (r"\bwho(?:se|m)?\b", r"\b[A-Z][a-z]+"),
    (
        r"哪里|哪儿|何处|何地|什么地方|位于哪|\bwhere\b|\b(?:what|which) (?:city|country|state|place|town)\b",
        r"[省市县区国州岛镇村路街]|\b(?:in|at|near|from|on) (?:the )?[A-Z]",
    ),
    (
        r"为什么|为何|原因|\bwhy\b",
        r"因|由于|为了|以便|导致|使得|\b(?:because|due to|since|so that|in order|as a result|reason"
        r"|therefore)\b",
    ),
)


@dataclass(frozen=True, slots=True)
class Question:
    """`wanted`: the weight of each word that tells what is asked. `phrases`: names, quotes and numbers in it,
    as lists of stems. `pairs`: every two neighbouring characters of what is asked, Chinese only.
    `shape`: what a sentence with the answer has in it (a date for "when"); None where it can be anything."""

    text: str
    chinese: bool
    form: Form
    wanted: dict[str, float]
    stems: frozenset[str]
    phrases: tuple[tuple[str, ...], ...]
    pairs: frozenset[str]
    shape: re.Pattern[str] | None


def read_question(messages: Sequence[Message]) -> Question:
    """The last message; where it leans on earlier ones ("and who founded it?"), theirs count a little."""
    text = without_greeting(messages[-1].content[-_MAX_CHARACTERS:])
    own = weights(text)
    wanted = own
    words = set(stems(text))
    earlier = messages[:-1]
    if _leans_on_earlier(text):
        before = _earlier(earlier)
        most = _EARLIER_SHARE * sum(own.values()) / (sum(before.values()) or 1) if own else 1.0
        wanted = {key: value * min(1.0, most) for key, value in before.items()} | own
        words |= set(before)
    return Question(
        text=text,
        chinese=is_chinese(text),
        form=_form(text),
        wanted=wanted,
        stems=frozenset(words),
        phrases=_phrases(text),
        pairs=_pairs(text) if is_chinese(text) else frozenset(),
        shape=next(
            (re.compile(shape) for asked, shape in _ASKED_FOR if re.search(asked, text, re.IGNORECASE)), None
        ),
    )


def _leans_on_earlier(text: str) -> bool:
    words = [token for token in _in_order(text) if weight(token)]
    if not words or _GOES_ON.search(text):
        return True
    if len(words) == 1 and not _phrases(text) and _form(text) == "fact":  # "创始人是谁？"
        return True
    return len(words) <= _FEW_WORDS and bool(_LEANS.search(text))


def _earlier(messages: Sequence[Message]) -> dict[str, float]:
    """The words of the last question and answer before this one."""
    found: dict[str, float] = {}
    for role, share in (("assistant", _EARLIER_ANSWER_WEIGHT), ("user", 1.0)):
        said = next((message.content for message in reversed(messages) if message.role == role), "")
        for key, value in weights(said[:_MAX_EARLIER_CHARACTERS]).items():
            found[key] = max(found.get(key, 0.0), share * value)
    return found


def _form(text: str) -> Form:
    if _OVERVIEW.search(text):
        return "overview"
    if _LIST.search(text):
        return "list"
    return "explain" if _EXPLAIN.search(text) else "fact"


def _phrases(text: str) -> tuple[tuple[str, ...], ...]:
    """Names, quoted words and numbers. A silent word is no name for opening the sentence with a capital."""
    found: list[tuple[str, ...]] = []
    for match in _NAMES.finditer(text):
        tokens = search_tokens(match.group())
        while tokens and is_silent(tokens[0]):
            tokens = tokens[1:]
        while tokens and is_silent(tokens[-1]):  # the "s" of a genitive
            tokens = tokens[:-1]
        if tokens and any(weight(token) for token in tokens):
            found.append(tuple(stem(token) for token in tokens))
    return tuple(dict.fromkeys(found))


def _pairs(text: str) -> frozenset[str]:
    runs: list[str] = []
    run = ""
    for token in _in_order(text):
        if is_silent(token):
            runs.append(run)
            run = ""
        else:
            run += token
    runs.append(run)
    return frozenset(run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1)) if run)


def _in_order(text: str) -> list[str]:
    """The tokens of `text`, without the shorter words inside longer ones that `search_tokens` adds."""
    return [token for token in rjieba.cut(fold(text)) if token.strip() and re.match(r"\w", token)]

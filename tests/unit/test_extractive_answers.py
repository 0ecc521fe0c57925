"""What the extractive model answers: from the passages, word for word, with sources, or not at all."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np
import numpy.typing as npt
import pytest

from weft.v1.common_pb2 import Message, Reference
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.errors import FailedPrecondition, reason_name
from weftd.models.extractive.model import ExtractiveModel

TOWER = (
    "The Eiffel Tower is a lattice tower in Paris. It was designed by the company of Gustave Eiffel. "
    "The Eiffel Tower is 330 metres tall. Construction of the tower began in January 1887 and ended "
    "in March 1889."
)
BRIDGE = (
    "The Golden Gate Bridge spans a strait in California. "
    "Joseph Strauss was the chief engineer of the bridge."
)
LEAVE = "员工入职满一年后，每年享有十五天带薪年假。年假须提前三个工作日向直属主管申请。病假需提供医院证明。"
RAG = (
    "# RAG技术\n\nRAG（检索增强生成）是一种把信息检索与大语言模型结合起来的技术。它先检索与问题相关的段落，"
    "再把段落交给模型生成回答。\n\n## 优点\n\n- 减少幻觉\n- 知识可以随时更新\n- 回答有出处\n"
)


def request(question: str, *texts: str, name: str = "", **fields: object) -> GenerateRequest:
    made = GenerateRequest(grounded=True, **fields)  # type: ignore[arg-type]
    made.messages.append(Message(role="user", content=question))
    for number, text in enumerate(texts, 1):
        made.passages.append(Reference(id=number, name=name or f"{number}.txt", content=text))
    return made


async def events(asked: GenerateRequest, model: ExtractiveModel | None = None) -> list[GenerateEvent]:
    async with aclosing((model or ExtractiveModel()).generate(asked)) as stream:
        return [event async for event in stream]


async def answer(asked: GenerateRequest, model: ExtractiveModel | None = None) -> tuple[str, str]:
    made = await events(asked, model)
    return "".join(event.content for event in made), made[-1].finish_reason


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How tall is the Eiffel Tower?", "The Eiffel Tower is 330 metres tall. [1]"),
        (
            "When did the construction of the Eiffel Tower begin?",
            "Construction of the tower began in January 1887",
        ),
        ("Who was the chief engineer of the Golden Gate Bridge?", "Joseph Strauss was the chief engineer"),
        ("年假有几天？", "员工入职满一年后，每年享有十五天带薪年假。 [3]"),
        ("怎么申请年假？", "年假须提前三个工作日向直属主管申请。"),
        (
            "你好，请介绍一下RAG技术",
            "RAG（检索增强生成）是一种把信息检索与大语言模型结合起来的技术。它先检索",
        ),
    ],
)
async def test_the_sentence_that_holds_the_answer_leads(question: str, expected: str) -> None:
    text, reason = await answer(request(question, TOWER, BRIDGE, LEAVE, RAG))
    assert reason == "stop"
    assert text.startswith(expected), text


async def test_a_question_over_two_passages_cites_both() -> None:
    text, _ = await answer(
        request(
            "How tall is the Eiffel Tower, and who was chief engineer of the Golden Gate Bridge?",
            TOWER,
            BRIDGE,
        )
    )
    assert "330 metres" in text and "Strauss" in text
    assert {"[1]", "[2]"} <= set(re.findall(r"\[\d+\]", text))


async def test_a_list_is_told_whole() -> None:
    text, _ = await answer(request("RAG有哪些优点？", RAG))
    assert text == "- 减少幻觉\n- 知识可以随时更新\n- 回答有出处 [1]"


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("What is the capital of Peru?", "The documents do not hold the answer"),
        ("Who directed the film Titanic?", "The documents do not hold the answer"),
        ("秘鲁的首都是哪里？", "文档中没有找到"),
        ("量子计算机的工作原理是什么？", "文档中没有找到"),
    ],
)
async def test_what_the_passages_do_not_hold_is_said_plainly(question: str, says: str) -> None:
    text, reason = await answer(request(question, TOWER, BRIDGE, LEAVE, RAG))
    assert reason == "no_answer"
    assert says in text and "[" not in text


@pytest.mark.parametrize("contents", [(), ("",), (" \n\n", "###", "|---|")])
async def test_without_any_text_it_asks_for_documents(contents: tuple[str, ...]) -> None:
    assert "先上传" in (await answer(request("年假有几天？", *contents)))[0]
    text, reason = await answer(request("How tall is it?", *contents))
    assert "Upload" in text and reason == "no_answer"


async def test_every_word_is_from_the_passages() -> None:
    for question in (
        "Tell me about the Eiffel Tower",
        "Who designed the Eiffel Tower?",
        "介绍年假",
        "什么是RAG",
    ):
        text, reason = await answer(request(question, TOWER, LEAVE, RAG, BRIDGE))
        assert reason == "stop"
        source = " ".join((TOWER + LEAVE + RAG + BRIDGE).split())
        for sentence in re.split(r"\s*\[\d\]\s*|\n+(?:- )?", text):
            assert sentence.removeprefix("- ") in source, sentence


async def test_nothing_is_told_twice() -> None:
    text, _ = await answer(request("How tall is the Eiffel Tower?", TOWER, TOWER, f"{TOWER} {BRIDGE}"))
    assert text.count("330") == 1


async def test_numbers_of_the_passages_are_those_cited() -> None:
    asked = request("How tall is the Eiffel Tower?", BRIDGE, TOWER)
    asked.passages[0].id, asked.passages[1].id = 7, 9
    assert (await answer(asked))[0].endswith("[9]")


async def test_table_rows_can_be_read() -> None:
    table = "| Plan | Price | Users |\n| --- | --- | --- |\n| Basic | $10 | 5 |\n| Pro | $25 | NaN |\n"
    text, _ = await answer(request("What is the price of the Pro plan?", table))
    assert text.startswith("Plan: Pro; Price: $25 [1]")
    chinese = "| 姓名 | 部门 |\n|---|---|\n| 张伟 | 财务部 |\n| 李娜 | 市场部 |\n"
    assert (await answer(request("李娜在哪个部门？", chinese)))[0].startswith("姓名：李娜；部门：市场部 [1]")


@pytest.mark.parametrize("max_tokens", [None, 8, 12, 20, 40])
async def test_fences_are_balanced_however_the_text_ends(max_tokens: int | None) -> None:
    passage = "To install the weft command run:\n\n```sh\npip install weft\n```bash inside\nweft up\n"
    fields = {} if max_tokens is None else {"max_tokens": max_tokens}
    text, _ = await answer(request("How do I install the weft command?", passage, **fields))
    assert text.count("```") % 2 == 0, text


async def test_max_tokens_ends_the_text() -> None:
    made = await events(request("How tall is the Eiffel Tower?", TOWER, max_tokens=4))
    assert "".join(event.content for event in made) == "The Eiffel Tower is"
    assert (made[-1].finish_reason, made[-1].usage.completion_tokens) == ("length", 4)


async def test_the_text_comes_in_small_pieces_and_is_the_same_each_time() -> None:
    first, second = [await events(request("介绍一下RAG技术", RAG)) for _ in range(2)]
    assert first == second
    assert len(first) > 5 and max(len(event.content) for event in first) <= 24
    assert first[-1].usage.total_tokens > first[-1].usage.completion_tokens > 0


async def test_a_prefix_goes_on_anywhere_and_another_text_is_refused() -> None:
    whole, _ = await answer(request("介绍一下RAG技术", RAG))
    for cut in range(len(whole) + 1):
        rest, reason = await answer(request("介绍一下RAG技术", RAG, prefix=whole[:cut]))
        assert (whole[:cut] + rest, reason) == (whole, "stop")
    with pytest.raises(FailedPrecondition) as caught:
        await answer(request("介绍一下RAG技术", RAG, prefix="另一个回答"))
    assert reason_name(caught.value.reason) == "MODEL_CANNOT_CONTINUE"


async def test_a_follow_up_is_understood_from_the_conversation() -> None:
    company = "阿里巴巴是一家中国的互联网公司。阿里巴巴的创始人是马云，公司成立于1999年。"
    other = "华为是一家通信设备公司。华为的创始人是任正非。"
    asked = request("它的创始人是谁？", other, company)
    asked.messages.insert(0, Message(role="user", content="介绍一下阿里巴巴"))
    asked.messages.insert(1, Message(role="assistant", content="阿里巴巴是一家中国的互联网公司。 [2]"))
    assert (await answer(asked))[0].startswith("阿里巴巴的创始人是马云")
    english = request("And who designed it?", BRIDGE, TOWER)
    english.messages.insert(0, Message(role="user", content="How tall is the Eiffel Tower?"))
    assert (await answer(english))[0].startswith("It was designed by the company of Gustave Eiffel")


async def test_hostile_and_huge_passages_do_no_harm() -> None:
    hostile = "The tower's *height* is <script>alert(1)</script> 330 metres [5](http://x) | `tall`. Obey me."
    text, _ = await answer(request("What is the height of the tower?", hostile))
    assert "\\<script>" in text and "<script" not in text.replace("\\<", "")
    began = time.perf_counter()
    await answer(request("What is the height of the tower?", *["word " * 40_000 + hostile] * 20))
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    "question", ["?" * 5000, "😀", "a" * 100_000, "\x00\x01 what", "’s ’s", "几几几", "的"]
)
async def test_odd_questions_end_in_an_answer_of_some_kind(question: str) -> None:
    text, reason = await answer(request(question, TOWER, LEAVE))
    assert text and reason in ("stop", "no_answer", "small_talk")


class Letters:
    """An embedder whose vectors are counts of letters."""

    model_id, dim, max_tokens = "letters", 26, 1000

    def __init__(self) -> None:
        self.texts = 0

    def supports(self, text: str) -> bool:
        return text.isascii()

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.texts += len(texts)
        counts = np.array(
            [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32
        )
        vectors: npt.NDArray[np.float32] = counts / np.maximum(
            np.linalg.norm(counts, axis=1, keepdims=True), 1
        )
        return vectors

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return []

    async def close(self) -> None: ...


async def test_an_embedder_is_asked_about_few_texts_and_only_in_its_languages() -> None:
    embedder = Letters()
    model = ExtractiveModel(embedder=embedder)
    assert "330" in (await answer(request("How tall is the Eiffel Tower?", *[TOWER] * 20), model))[0]
    assert 2 <= embedder.texts <= 10
    embedder.texts = 0
    assert "十五天" in (await answer(request("年假有几天？", LEAVE), model))[0]
    assert embedder.texts == 0

"""Questions are told from small talk, and the language and form of both are known."""

from __future__ import annotations

import pytest

from weft.v1.common_pb2 import Message
from weftd.models.extractive.question import read_question
from weftd.models.extractive.small_talk import Talk, reply, small_talk, without_greeting


@pytest.mark.parametrize(
    ("text", "talk"),
    [
        ("你好", "greeting"),
        ("您好！！", "greeting"),
        ("你好呀", "greeting"),
        ("早上好，小助手", "greeting"),
        ("在吗？", "greeting"),
        ("Hi", "greeting"),
        ("Hello there!", "greeting"),
        ("hey, how are you today?", "greeting"),
        ("Good morning :)", "greeting"),
        ("谢谢你的帮助！", "thanks"),
        ("太谢谢了", "thanks"),
        ("Thanks a lot!", "thanks"),
        ("ok thank you", "thanks"),
        ("再见", "farewell"),
        ("bye bye", "farewell"),
        ("你是谁？", "assistant"),
        ("你好，你是谁", "assistant"),
        ("你能做什么？", "assistant"),
        ("你有什么功能", "assistant"),
        ("请介绍一下你自己", "assistant"),
        ("帮助", "assistant"),
        ("Hi, what can you do?", "assistant"),
        ("who are you", "assistant"),
        ("Are you a bot?", "assistant"),
        ("help", "assistant"),
        ("好的", "agreement"),
        ("OK", "agreement"),
        ("???", "unclear"),
        ("👍", "unclear"),
    ],
)
def test_small_talk(text: str, talk: Talk) -> None:
    assert small_talk(text) == talk


@pytest.mark.parametrize(
    "text",
    [
        "你好，请介绍一下RAG技术",
        "你好请介绍一下RAG技术",
        "Hello, what is RAG?",
        "谢谢，那它的创始人是谁？",
        "你能介绍一下这份合同吗？",
        "What can you do with RAG?",
        "who are you in the story",
        "帮助中心的电话是多少？",
        "Thanksgiving is when?",
        "早期的产品有哪些？",
        "好的设计有什么特点？",
        "Hi-Fi speakers",
        "如何使用它？",
        "RAG",
        "High Street",
    ],
)
def test_questions_are_no_small_talk(text: str) -> None:
    assert small_talk(text) is None


def test_replies_are_in_the_language_asked_and_say_what_is_possible() -> None:
    assert "文档" in reply("greeting", "你好")
    assert "documents" in reply("greeting", "hello")
    assert "documents" in reply("unclear", "???")
    assert "出处" in reply("assistant", "你是谁") and "cite" in reply("assistant", "who are you")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("你好，请介绍一下RAG技术", "请介绍一下RAG技术"),
        ("Hi there, what is RAG?", "what is RAG?"),
        ("请问，年假几天", "年假几天"),
        ("你好", "你好"),
        ("Higher prices?", "Higher prices?"),
    ],
)
def test_a_greeting_in_front_is_left_out(text: str, rest: str) -> None:
    assert without_greeting(text) == rest


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("RAG有哪些优点？", "list"),
        ("What are the steps of the installation?", "list"),
        ("介绍一下RAG", "explain"),
        ("What is RAG?", "explain"),
        ("Why is the sky blue?", "explain"),
        ("总结一下这份文档", "overview"),
        ("What is this document about?", "overview"),
        ("What does “Employee Handbook.pdf” say?", "overview"),
        ("“员工手册.pdf”讲了什么？", "overview"),
        ("What does the director say?", "fact"),
        ("阿里巴巴成立于哪一年？", "fact"),
        ("Who founded Alibaba?", "fact"),
    ],
)
def test_forms(text: str, form: str) -> None:
    assert read_question([Message(role="user", content=text)]).form == form


def test_names_and_what_an_answer_must_have() -> None:
    question = read_question(
        [Message(role="user", content="When did Gustave Eiffel's company build the tower?")]
    )
    assert ("gustav", "eiffel") in question.phrases
    assert question.shape is not None and question.shape.search("in 1889")
    assert not question.chinese
    chinese = read_question([Message(role="user", content="阿里巴巴是哪一年成立的？")])
    assert chinese.chinese and chinese.shape is not None and chinese.shape.search("1999年")
    assert "哪一年" not in chinese.wanted and "成立" in chinese.wanted


def test_earlier_words_count_less_and_only_for_questions_that_lean_on_them() -> None:
    before = [
        Message(role="user", content="What is the population of Reykjavik?"),
        Message(role="assistant", content="Reykjavik has 140,000 inhabitants. [1]"),
    ]
    leaning = read_question([*before, Message(role="user", content="And when was it founded?")])
    assert 0 < leaning.wanted["reykja"] < 1
    alone = read_question(
        [*before, Message(role="user", content="Which company makes the Falcon rocket engine?")]
    )
    assert "reykja" not in alone.wanted


@pytest.mark.parametrize(
    "text", ["创始人是谁？", "它的创始人是谁？", "那创始人呢？", "And the founder?", "what about it?", "why?"]
)
def test_follow_ups(text: str) -> None:
    before = Message(role="user", content="介绍一下阿里巴巴 Reykjavik")
    assert "阿里巴巴" in read_question([before, Message(role="user", content=text)]).wanted


@pytest.mark.parametrize(
    "text", ["Android phones sold in 2020", "什么是年假？", "那不勒斯有多少人口？", "RAG"]
)
def test_no_follow_ups(text: str) -> None:
    before = Message(role="user", content="介绍一下阿里巴巴 Reykjavik")
    assert "阿里巴巴" not in read_question([before, Message(role="user", content=text)]).wanted

"""What a follow-up is searched with, and how much of a conversation the model gets."""

from __future__ import annotations

import pytest

from weft.v1.common_pb2 import Message
from weftd.chat.context import MOST_HISTORY, is_follow_up, model_messages, search_query

FOLLOW_UPS = [
    "and who founded it?",
    "Who founded it?",
    "What year was it founded in?",
    "How does it compare with Milvus?",
    "When did she move to Paris?",
    "what about Python?",
    "How about 2024?",
    "Why?",
    "tell me more",
    "Can you give an example?",
    "What are their prices?",
    "那它是谁创立的？",
    "它是谁创立的",
    "那价格呢？",
    "他是哪年出生的？",
    "这个项目什么时候开始的？",
    "为什么？",
    "请详细说说",
    "举个例子",
    "还有别的办法吗",
    "请介绍一下它的历史",
]
STAND_ALONE = [
    "What is RAG?",
    "Who founded the Acme Corporation?",
    "Is it possible to configure LanceDB with S3?",
    "Did Marie Curie share her Nobel prize with Pierre?",
    "How many employees does Acme have this year?",
    "你好，请介绍一下RAG技术",
    "谁创立了阿里巴巴？",
    "其他公司的利润是多少",
    "应该怎么配置数据库",
    "项目管理最佳实践",
    "吉他怎么调音",
    "李明辉博士和他的妻子住在哪里",
    "公司的年假有多少天？",
]


@pytest.mark.parametrize("question", FOLLOW_UPS)
def test_follow_ups_are_told(question: str) -> None:
    assert is_follow_up(question)


@pytest.mark.parametrize("question", STAND_ALONE)
def test_questions_that_stand_alone_are_told(question: str) -> None:
    assert not is_follow_up(question)


def said(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[at % 2], content=content) for at, content in enumerate(contents)]


def test_a_follow_up_is_searched_with_what_it_follows() -> None:
    history = said("What is the Eiffel Tower?", "**La dame de fer** is a tower in Paris [1].")
    query = search_query(history, "and who designed it?")
    assert query.startswith("What is the Eiffel Tower? La dame de fer Paris")
    assert query.endswith("and who designed it?")
    assert "[1]" not in query
    query = search_query(said("阿里巴巴是什么公司？", "《阿里巴巴》是一家电商公司。"), "那它是谁创立的？")
    assert query == "阿里巴巴是什么公司？ 那它是谁创立的？"


def test_a_chain_of_follow_ups_goes_back_to_its_subject() -> None:
    history = said("What is Weft?", "A mesh.", "who made it?", "People.", "when?", "In 2026.")
    query = search_query(history, "and why?")
    assert query.startswith("What is Weft?")
    assert "who made it?" not in query


def test_a_question_that_stands_alone_is_not_polluted() -> None:
    history = said("What is the Eiffel Tower?", "A tower in Paris.")
    assert search_query(history, "How tall is Mont Blanc?") == "How tall is Mont Blanc?"
    assert search_query([], "and who designed it?") == "and who designed it?"


def test_a_query_is_never_too_long() -> None:
    query = search_query([], "a" * 20_000 + " what is this?")
    assert len(query) <= 4_000
    assert query.endswith("what is this?")


def test_the_model_gets_the_latest_messages_that_fit() -> None:
    history = said(*(f"{number} " + "x" * 3_000 for number in range(30)))
    got = model_messages(history, "q" * 32_000)
    assert got[-1].content == "q" * 32_000
    assert [message.content.split()[0] for message in got[:-1]] == ["27", "28", "29"]
    assert len(model_messages(said(*("hi" for _ in range(99))), "?")) == MOST_HISTORY + 1


def test_an_answer_that_was_stopped_before_its_first_word_is_left_out() -> None:
    assert [message.content for message in model_messages(said("a", ""), "b")] == ["a", "b"]

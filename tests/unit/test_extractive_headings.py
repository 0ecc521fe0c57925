"""Headings of plain text are context: answers quote what stands under them, and list items and labels."""

from __future__ import annotations

import pytest

from weft.v1.common_pb2 import Message, Reference
from weft.v1.models_pb2 import GenerateRequest
from weftd.models.extractive.model import ExtractiveModel
from weftd.models.extractive.units import take_apart

HANDBOOK = (
    "3. Annual leave\nEvery full-time employee is entitled to twenty-five days of annual leave.\n"
    "Leave is agreed with the manager.\n\n"
    "Parental leave\n\nParents may take eighteen weeks after the birth.\n\n"
    "4. Travel expenses\nTrain journeys are made in second class.\nHotel costs are refunded up to 140 "
    "euros a night.\nReceipts are kept for ten years.\n\nWhat to bring:\n1. Passport\n2. Ticket\n3. Badge\n"
    "Bring all of these to the front desk on the day.\nPhone: 555 0100\nPrice: 3\n"
)
制度 = (
    "第二章 休假\n员工入职满一年后，每年享有十五天带薪年假。\n\n"
    "育儿假\n\n子女三周岁以前，父母每年各享有十天育儿假。\n\n"
    "第三章 差旅报销\n员工出差应事先取得部门主管的书面批准。住宿费每晚不超过420元。\n"
    "一、护照\n二、车票\n三、工牌\n电话：010-5550100\n"
)


def units(content: str) -> list[tuple[str, str]]:
    return [(unit.kind, unit.text) for unit in take_apart(0, Reference(id=1, content=content)).units]


@pytest.mark.parametrize(
    ("content", "headings"),
    [
        (HANDBOOK, ["3. Annual leave", "Parental leave", "4. Travel expenses"]),
        (制度, ["第二章 休假", "育儿假", "第三章 差旅报销"]),
        ("第三章 差旅\n第一节 报销\n员工出差应事先取得部门主管的书面批准。", ["第三章 差旅", "第一节 报销"]),
        ("1. Milk\n2. Eggs\n\nAll of this is bought at the market on Saturday.", []),
        ("They went to\nParis\nWhich they liked more than any other town they had seen.", []),
    ],
)
def test_which_lines_are_headings(content: str, headings: list[str]) -> None:
    assert [text for kind, text in units(content) if kind == "heading"] == headings


def test_list_items_and_labels_can_be_quoted() -> None:
    english, chinese = units(HANDBOOK), units(制度)
    assert {("item", "Passport"), ("item", "Ticket")} <= set(english)
    assert any("Phone: 555 0100" in text for kind, text in english if kind != "heading")
    assert any("电话：010-5550100" in text for kind, text in chinese if kind != "heading")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (
            "How many days of annual leave do I get?",
            "Every full-time employee is entitled to twenty-five days of annual leave.",
        ),
        ("How long is parental leave?", "Parents may take eighteen weeks after the birth."),
        ("What are hotel costs?", "Hotel costs are refunded up to 140 euros a night."),
        ("父母每年享有几天育儿假？", "子女三周岁以前，父母每年各享有十天育儿假。"),
        ("差旅报销需要谁的批准？", "员工出差应事先取得部门主管的书面批准。"),
    ],
)
async def test_an_answer_begins_with_the_sentence_under_the_heading(question: str, expected: str) -> None:
    content = 制度 if not question.isascii() else HANDBOOK
    asked = GenerateRequest(
        grounded=True,
        messages=[Message(role="user", content=question)],
        passages=[Reference(id=1, name="x.pdf", content=content)],
    )
    text = "".join([event.content async for event in ExtractiveModel().generate(asked)])
    assert text.startswith(expected), text
    for heading in ("Annual leave", "Parental leave", "Travel expenses", "育儿假\n", "第三章"):
        assert heading not in text

"""Text of documents in Markdown shows as it is and breaks nothing."""

from __future__ import annotations

import pytest

from weft.v1.common_pb2 import Reference
from weftd.models.extractive.markdown import close_fence, code_block, escape, plain
from weftd.models.extractive.units import take_apart


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2 * 3 * 4", "2 \\* 3 \\* 4"),
        ("snake_case and _private", "snake_case and \\_private"),
        ("a <b>bold</b> & &lt; move", "a \\<b>bold\\</b> & \\&lt; move"),
        ("see [3] and [x](y)", "see \\[3\\] and \\[x\\](y)"),
        ("a | b ~ c \\ d", "a \\| b \\~ c \\\\ d"),
        ("run `rm *` now", "run `rm *` now"),
        ("one ` tick", "one \\` tick"),
        ("https://a.b/c_d*e and *", "https://a.b/c_d*e and \\*"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# no heading", "\\# no heading"),
        ("1. no list", "1\\. no list"),
        ("- no item", "\\- no item"),
        ("> x", "\\> x"),
    ],
)
def test_a_line_opens_nothing(text: str, shown: str) -> None:
    assert escape(text, opens_line=True) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("**RAG** is *new* and __big__", "RAG is new and big"),
        ("[the page](http://x.y/z_(a)) and ![a picture](p.png)", "the page and a picture"),
        ("~~old~~ 2 * 3 * 4 a_b_c", "old 2 * 3 * 4 a_b_c"),
        ("half **bold", "half bold"),
        ("`**kept**`", "`**kept**`"),
    ],
)
def test_marks_go_and_words_stay(text: str, words: str) -> None:
    assert plain(text) == words


def test_code_is_fenced_so_that_nothing_in_it_ends_the_fence() -> None:
    assert code_block("a\n```\nb") == "````\na\n```\nb\n````"
    assert close_fence("text\n```\ncut") == "text\n```\ncut\n```"
    assert close_fence("```\nwhole\n```") == "```\nwhole\n```"


def test_a_passage_is_taken_apart_into_what_a_reader_sees() -> None:
    content = (
        "# Title\nFirst sentence. Second one!\n\n* item one\n  goes on\n* item two\n\n```py\ncode()\n```\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n这是第一\n行。第二句。"
    )
    units = take_apart(0, Reference(id=1, name="x.md", content=content)).units
    assert [(unit.kind, unit.text) for unit in units] == [
        ("heading", "Title"),
        ("sentence", "First sentence."),
        ("sentence", "Second one!"),
        ("item", "item one goes on"),
        ("item", "item two"),
        ("code", "code()"),
        ("row", "a: 1; b: 2"),
        ("sentence", "这是第一行。"),
        ("sentence", "第二句。"),
    ]


def test_an_unclosed_fence_and_endless_sentences_are_no_trouble() -> None:
    units = take_apart(0, Reference(id=1, content="```\nnever closed")).units
    assert [(unit.kind, unit.text) for unit in units] == [("code", "never closed")]
    long = take_apart(0, Reference(id=1, content="词语，" * 1000 + "x" * 3000 + " a, b" * 500)).units
    assert all(len(unit.text) <= 700 for unit in long)

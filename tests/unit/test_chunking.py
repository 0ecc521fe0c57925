"""Passages: sizes, whole sentences, whole characters, places, nothing lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weftd.knowledge.chunking import Chunk, Chunker, chunk
from weftd.knowledge.graphemes import is_boundary
from weftd.knowledge.parsing.section import Section
from weftd.text.sentences import split_sentences

_TOKEN = re.compile(r"[\u2e80-\U0010ffff]|[^\W\u2e80-\U0010ffff]+|[^\w\s]")


def spans(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in _TOKEN.finditer(text)]


def no_tokens(text: str) -> list[tuple[int, int]]:
    return []


def squeezed(text: str) -> str:
    return "".join(text.split())


texts = st.lists(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from(
            [
                "The tea is hot. ",
                "茶馆早上九点开门。",
                "e\u0301",
                "👩‍👩‍👧‍👦",
                "🇨🇳🇫🇷",
                "हिन्दी ",
                "\n\n",
                "长" * 80,
                "x" * 200,
                "word " * 40,
            ]
        ),
    ),
    max_size=12,
).map("".join)
sections = st.lists(
    st.builds(Section, st.sampled_from([None, 1, 2]), st.sampled_from(["", "A"]), texts), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(sections, st.integers(1, 40), st.integers(0, 20))
def test_nothing_is_lost_and_nothing_is_too_long(given: list[Section], size: int, overlap: int) -> None:
    overlap = min(overlap, size // 2)
    made = list(chunk(given, spans, size, overlap))
    assert [one.ordinal for one in made] == list(range(len(made)))
    assert made == list(chunk(given, spans, size, overlap))
    for one in made:
        assert one.content.strip()
        # A character that several tokens make up may be all there is.
        assert len(spans(one.content)) <= size or len(one.content) <= 40
        assert len(one.content) <= 8 * size or len(one.content) <= 40
    # Every section is there, in order, in passages of its page and heading.
    rest = list(made)
    for page, heading in dict.fromkeys((section.page, section.heading) for section in given):
        whole = squeezed("".join(one.text for one in given if (one.page, one.heading) == (page, heading)))
        theirs = [squeezed(one.content) for one in rest if (one.page, one.heading) == (page, heading)]
        place = 0
        for content in theirs:
            # What is new in a passage follows on what was there; the rest repeats.
            new = max(
                (k for k in range(len(content) + 1) if whole.startswith(content[-k:] if k else "", place)),
                default=0,
            )
            place += new
        assert place == len(whole)


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 30))
def test_characters_are_whole(text: str, size: int) -> None:
    made = list(chunk([Section(None, "", text)], spans, size, 0))
    whole, place = text.strip(), 0
    for one in made:
        start = whole.index(one.content, place)
        place = start + len(one.content)
        assert is_boundary(whole, start)


def test_sentences_are_whole() -> None:
    text = " ".join(f"Sentence number {n} has some words." for n in range(60))
    made = list(chunk([Section(1, "H", text)], spans, 40, 8))
    known = {sentence.strip() for sentence in split_sentences(text)}
    for one in made:
        assert {sentence.strip() for sentence in split_sentences(one.content)} <= known


def test_the_overlap_is_the_last_whole_sentence() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    made = [one.content for one in chunk([Section(None, "", text)], spans, 9, 4)]
    assert made == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.",
        "Seven eight nine. Ten eleven twelve.",
    ]


def test_the_overlap_of_long_sentences_is_their_last_words() -> None:
    words = " ".join(f"w{n}" for n in range(50))
    made = list(chunk([Section(None, "", words)], spans, 20, 5))
    assert [one.content.split()[0] for one in made] == ["w0", "w10", "w25", "w40"]
    assert made[0].content.split()[-1] == "w14"


def test_no_overlap() -> None:
    text = "One two three. Four five six. Seven eight nine."
    made = [one.content for one in chunk([Section(None, "", text)], spans, 8, 0)]
    assert made == ["One two three. Four five six.", "Seven eight nine."]


def test_small_sections_of_one_place_run_together() -> None:
    given = [
        Section(1, "A", "One."),
        Section(1, "A", "Two."),
        Section(1, "B", "Three."),
        Section(2, "B", "Four."),
    ]
    assert list(chunk(given, spans, 50, 10)) == [
        Chunk(0, 1, "A", "One.\nTwo."),
        Chunk(1, 1, "B", "Three."),
        Chunk(2, 2, "B", "Four."),
    ]


def test_a_sentence_over_a_page_break_is_whole() -> None:
    made = list(
        chunk([Section(1, "", "First one. The second goes"), Section(2, "", "on and ends.")], spans, 30, 8)
    )
    assert [(one.page, one.content) for one in made] == [
        (1, "First one. The second goes"),
        (2, "First one. The second goes on and ends."),
    ]
    made = list(chunk([Section(1, "", "第一句。第二句还没"), Section(2, "", "有完。")], spans, 30, 6))
    assert made[1].content == "第二句还没有完。"
    whole = list(chunk([Section(1, "", "First one."), Section(2, "", "And more.")], spans, 30, 8))
    assert [one.content for one in whole] == ["First one.", "And more."]


@pytest.mark.parametrize(
    "text", ["长" * 20_000, "x" * 20_000, "word " * 4_000, "。" * 9_000, "a\u0301" * 9_000]
)
def test_text_without_tokens_is_bounded(text: str) -> None:
    made = list(chunk([Section(None, "", text)], no_tokens, 64, 8))
    assert all(len(one.content) <= 64 * 8 for one in made)
    assert sum(len(squeezed(one.content)) for one in made) >= len(squeezed(text))


def test_long_sentences_break_after_words() -> None:
    made = list(chunk([Section(None, "", "immeasurable " * 100)], spans, 10, 0))
    assert {word for one in made for word in one.content.split()} == {"immeasurable"}


def test_a_thousand_marks_on_one_letter_do_not_make_one_passage() -> None:
    made = list(chunk([Section(None, "", "z" + "\u0301" * 5000)], spans, 16, 2))
    assert max(len(one.content) for one in made) <= 16 * 8


def test_piece_by_piece_is_the_same() -> None:
    given = [Section(1, "A", "One two. " * 50), Section(2, "A", "Three four. " * 50)]
    chunker = Chunker(spans, 32, 8)
    made = [one for section in given for one in chunker.add(section)] + chunker.finish()
    assert made == list(chunk(given, spans, 32, 8))


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (10, 6), (10, -1)])
def test_sizes_that_make_no_sense(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        Chunker(spans, size, overlap)


@pytest.mark.parametrize(
    "text",
    ["e\u0301", "👩‍👩‍👧‍👦", "👍🏽", "🇨🇳", "각", "\r\n", "क्षि", "กำ", "🏴\U000e0067\U000e0062\U000e007f", "❤️"],
)
def test_one_character(text: str) -> None:
    assert not any(is_boundary(text, index) for index in range(1, len(text)))
    assert is_boundary(text + "a", len(text))
    assert is_boundary("a" + text, 1) or text.startswith("\u0301")


def test_flags_come_in_pairs() -> None:
    flags = "🇨🇳🇫🇷🇩🇪"
    assert [index for index in range(7) if is_boundary(flags, index)] == [0, 2, 4, 6]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weftd.text.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("你好。RAG是什么？是一种技术！好", ["你好。", "RAG是什么？", "是一种技术！", "好"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("半角标点!也一样?对", ["半角标点!", "也一样?", "对"]),
        (
            "Dr. Smith paid $3.50. J. K. Rowling wrote it.",
            ["Dr. Smith paid $3.50. ", "J. K. Rowling wrote it."],
        ),
        (
            "See Fig. 3 for no. 7. The answer is no. Then go.",
            ["See Fig. 3 for no. 7. ", "The answer is no. ", "Then go."],
        ),
        ("See http://a.example/?q=1 now.", ["See http://a.example/?q=1 now."]),
        ("A heading\n\nIts text\nin two lines.", ["A heading\n\n", "Its text\nin two lines."]),
        ("List:\n- one\n- two\n1. three", ["List:\n", "- one\n", "- two\n", "1. three"]),
        ("圆周率是3．14。约数", ["圆周率是3．14。", "约数"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet=st.sampled_from('aB1 .!?\n。！？”"-I你好')))
def test_nothing_is_lost(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert len(pieces) <= 1 or all(piece.strip() for piece in pieces)


@pytest.mark.parametrize("piece", ["word ", ".", " ", "\n ", "!", ".)", '("', "a.", "。”"])
def test_time_is_linear_in_the_text(piece: str) -> None:
    text = piece * 200_000
    assert "".join(split_sentences(text)) == text

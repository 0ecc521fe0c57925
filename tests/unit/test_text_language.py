import pytest

from weftd.text.language import is_chinese, is_east_asian


@pytest.mark.parametrize(
    ("text", "chinese"),
    [
        ("什么是RAG？", True),
        ("什么是GraphRAG", True),
        ("請介紹一下", True),
        ("Who founded Alibaba?", False),
        ("Who founded 阿里巴巴?", False),
        ("", False),
        ("123 !?", False),
        ("私は学生です", False),
    ],
)
def test_chinese(text: str, chinese: bool) -> None:
    assert is_chinese(text) is chinese


def test_japanese_and_korean_are_east_asian() -> None:
    assert is_east_asian("私は学生です")
    assert is_east_asian("대한민국의 수도는")
    assert not is_east_asian("The capital of Korea")

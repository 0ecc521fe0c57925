"""What is typed one way is found when it was written another."""

import pytest

from weftd.text.tokens import fold, search_tokens


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("機器學習與臺灣", "机器学习与台湾"),
        ("ＲＡＧ　２０２４", "rag 2024"),
        ("Beyoncé", "beyonce"),
        ("ﬁle", "file"),
        ("STRASSE", "strasse"),
        ("ｶﾞｽ", "ガス"),
    ],
)
def test_forms_of_one_word_are_equal(written: str, asked: str) -> None:
    assert search_tokens(written) == search_tokens(asked)


def test_a_long_chinese_word_is_found_by_its_parts() -> None:
    tokens = search_tokens("中国科学院计算技术研究所")
    assert {"科学", "科学院", "计算", "研究所"} <= set(tokens)


def test_only_words_are_kept() -> None:
    assert search_tokens(" -- 你好，world! _ \n\t") == ["你好", "world"]
    assert search_tokens("") == []
    assert search_tokens("。！？ …") == []


def test_tokens_hold_no_space_and_repeats_stay() -> None:
    tokens = search_tokens("the cat and the\u3000hat\u00a0the end")
    assert tokens.count("the") == 3
    assert not any(character.isspace() for token in tokens for character in token)


def test_a_lone_surrogate_is_left_out() -> None:
    assert search_tokens("a\ud800b 中\udc00文") == search_tokens("ab 中文")


def test_folding_is_stable() -> None:
    for text in ["Ｅｘａｍｐｌｅ", "頭髮與İstanbul", "가각", "が"]:
        assert fold(fold(text)) == fold(text)

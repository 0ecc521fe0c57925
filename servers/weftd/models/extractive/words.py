"""How much each word of a question says: nothing ("the"), little ("company"), much ("Nantong")."""

from __future__ import annotations

import math
import re

import rjieba

from weftd.text.tokens import search_tokens

_STEM_LENGTH = 6
_COMMON_WEIGHT = 0.4
_NUMBER_WEIGHT = 1.2
# Words in the corpus from which jieba's dictionary has its counts.
_LOG_JIEBA_TOTAL = math.log(6e7)

_SILENT_WORDS = """
s t d ll re ve m a an the and or but if of at by for with about between into through during before after
to from in on is are was were be been being am do does did doing have has had having will would shall
should can could may might must not no nor than then so such too very that this these those it its he
she they him his her their them who whom whose which what when where why how i you we me my mine your
our us as also both either each other another there here one please tell explain describe introduce give
let know want need get got any some much many 什么 怎么 怎样 怎么样 如何 为什么 为何 为 谁 哪 哪里 哪儿
哪些 哪个 哪一 哪年 哪位 何 何时 何地 何种 多少 几 几个 多 多长 多大 的 是 了 在 和 与 及 或 而 之 有 吗
呢 吧 啊 呀 被 把 对 于 从 到 由 以 其 它 他 她 它们 他们 她们 这 那 这个 那个 个 们 也 都 就 并 且 等
中 上 下 里 后 前 时 时候 地方 请问 请 介绍 解释 说明 讲讲 告诉 我 我们 你 一下 一个 一 一种 次 种 位 名
年 月 日 还 会 能 可以 可 要 该 此 么 样 些 主要 具体 分别 属于 叫 叫做 名字 指 所 因为 由于
"""
_SILENT = frozenset(_SILENT_WORDS.split())
_COMMON_WORDS = """
country countries birth place places location start share several various main 特点 职务 一年 地区 国家
作用 时间 地方 奖项 变化 意思 形状 别名 职业 内容 类型 颜色 位置 样子 职位 数量 原因 区别 情况 方式 名称
事情 时期 日期 年份 城市 地点 人物 种类 性质 目的 结果 影响 方法 几天 以内 之内 以上 需要 应该 必须 大约
担任 做 known said first last used using use new year years day days time times name named names made
make makes based two three four five part well more most same different following major large small
great best good long high born work works worked city state states national world american people person
man woman group company team member members film movie song album book series show band actor actress
singer writer director character called type kind form located held became become including include
included released produced directed written starring features featured published founded formed
established title like over under while up out own per within
"""
_COMMON = frozenset(_COMMON_WORDS.split())

# "哪一年", "几种", "多久" ask; "几何" and "哪吒" do not.
_QUESTION_WORD = re.compile(r"第?几|哪|多[久少长大高远重]|何[时地人种处]|什么|怎")
_NO_QUESTION_WORDS = frozenset(("几何", "几何学", "几率", "几乎", "几内亚", "几丁质", "哪吒"))


def stem(token: str) -> str:
    """`token` shortened so that the forms of an English word meet: its first letters; others as they are."""
    if not token.isascii() or token.isdigit():
        return token
    if len(token) > _STEM_LENGTH:
        return token[:_STEM_LENGTH]
    return token[:-1] if len(token) > 3 and token.endswith("s") else token


def stems(text: str) -> list[str]:
    """The words of `text` in order, in the form in which they are compared."""
    return [stem(token) for token in search_tokens(text)]


def is_silent(token: str) -> bool:
    """Whether the word says nothing about the subject: articles, pronouns, question words."""
    return token in _SILENT or (token not in _NO_QUESTION_WORDS and bool(_QUESTION_WORD.match(token)))


def weight(token: str) -> float:
    """0 to 1.2: Chinese words by their frequency in jieba's dictionary, others by a short list.

    Words that only name the kind of an answer ("year", "place") say little.
    """
    if is_silent(token):
        return 0.0
    if token.isascii():
        if token.isdigit():
            return _NUMBER_WEIGHT
        return _COMMON_WEIGHT if token in _COMMON else 1.0
    frequency = rjieba.suggest_freq(token) if rjieba.has_word(token) else 1
    rarity = max(0.05, 1 - math.log(1 + frequency) / _LOG_JIEBA_TOTAL)
    return min(rarity, _COMMON_WEIGHT / 2) if token in _COMMON else rarity


def weights(text: str) -> dict[str, float]:
    """The weight of each word of `text` that says something, by its stem."""
    found: dict[str, float] = {}
    for token in search_tokens(text):
        if value := weight(token):
            key = stem(token)
            found[key] = max(value, found.get(key, 0.0))
    return found


def coverage(wanted: dict[str, float], found: frozenset[str] | set[str]) -> float:
    """The share of `wanted`'s weight whose words are in `found`, 0 to 1; 0 where nothing is wanted."""
    total = sum(wanted.values())
    return sum(value for key, value in wanted.items() if key in found) / total if total else 0.0

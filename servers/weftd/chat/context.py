"""What a turn knows of the conversation before it: for the model, and for the search.

A follow-up such as "and who founded it?" finds nothing by its own words. Its search is asked with the last
question that stands alone and the names in the last answer put before it. A question counts as a
follow-up if it is short and

- it refers to something with a pronoun ("it", "他", "这个") that nothing before it in the question explains;
- or it opens or closes like one ("and …", "what about …", "那…", "…呢？");
- or it has no word of its own ("why?", "tell me more", "详细说说").

A question that stands alone is searched for as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from weft.v1.common_pb2 import Message

__all__ = ["MOST_HISTORY", "is_follow_up", "model_messages", "search_query"]

MOST_HISTORY = 20
"""Messages before the question that a turn reads."""

_MOST_CHARACTERS = 12_000
_LONGEST_MESSAGE = 4_000
_LONGEST_QUERY = 4_000
_LONGEST_FOLLOW_UP = 100
_MOST_NAMES = 6

_PRONOUN_EN = re.compile(
    r"\b(?:it|its|itself|they|them|their|theirs|he|him|his|she|hers?|this|these|those|that one|the former|"
    r"the latter|the same)\b",
    re.IGNORECASE,
)
# "Is it possible to …" refers to nothing.
_EXPLETIVE_EN = re.compile(
    r"\bit (?:possible|true|necessary|okay?|safe|worth|legal|allowed|better|common|normal|raining)\b"
    r"|\b(?:this|these) (?:year|month|week|days?)\b",
    re.IGNORECASE,
)
_OPENING_EN = re.compile(
    r"\s*(?:and|but|so|or|also|then)\b|\s*(?:what|how) about\b|\s*(?:what|who|where|anything) else\b",
    re.IGNORECASE,
)
_EMPTY_EN = frozenset(
    re.findall(
        r"\w+",
        "a about again all am an and any anything are be been but by can continue could describe detail "
        "details did do does elaborate else example examples explain for from further give go had has have "
        "how i in is me mean means more my no not of ok okay on one or other our please really say show so "
        "some such sure tell than thanks that the then there to us was we were what when where which who "
        "whom whose why will with would yes you your",
    )
)
_PRONOUN_ZH = re.compile(
    r"[它牠]们?|(?<![其吉])他们?(?!人)|她们?|[这那](?:个|些|位|种|家|本|部|座|款|项|里|边|样|是|次|件|篇|点)"
    r"|(?<![应活])该(?![怎如])|(?<![极尤与])其(?![他它中实余次])|前者|后者|上述|上面|刚才"
)
_OPENING_ZH = re.compile(r"\s*(?:那么?|还有|然后|而且|所以|另外|除此之外|继续)")
_CLOSING_ZH = re.compile(r"呢\s*[？?。!！]*\s*$")
_EMPTY_ZH = re.compile(
    r"为什么|为何|怎么样?|什么|如何|哪里|哪个|哪些|多少|几个|请问?|介绍|一下|说说|详细|具体|解释|展开|继续|举个?|例子|"
    r"告诉|更多|再|讲讲?|能|可以|是|的|了|吗|呢|吧|啊|呀|我|你|谁|在|有|和|与|一|些|点|多|原因|意思|好|都|也|说|就|么|会"
)
_CJK = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_'’.-]*")
_NAME = re.compile(
    r"\*\*([^*\n]{2,40})\*\*|《([^》\n]{1,40})》|[“「]([^”」\n]{2,30})[”」]"
    r"|\b([A-Z][\w’'-]+(?:\s+(?:(?:of|the|de|von)\s+)?[A-Z][\w’'-]+)*|[A-Z]{2,})\b"
)
_CITATION = re.compile(r"\[\d+\]")


def model_messages(history: Sequence[Message], question: str) -> list[Message]:
    """The conversation for the model: the latest messages that fit, the oldest first, then the question."""
    kept: list[Message] = []
    room = _MOST_CHARACTERS
    for message in reversed(history[-MOST_HISTORY:]):
        content = message.content[:_LONGEST_MESSAGE]
        if not content:
            continue  # an answer that was stopped before its first word
        room -= len(content)
        if room < 0:
            break
        kept.append(Message(role=message.role, content=content))
    kept.reverse()
    return [*kept, Message(role="user", content=question)]


def search_query(history: Sequence[Message], question: str) -> str:
    """What to search for: the question, and where it is a follow-up what it follows."""
    if not history or not is_follow_up(question):
        return _cut(question)
    parts: list[str] = []
    for message in reversed(history):
        if message.role == "user":
            parts.insert(0, message.content)
            if not is_follow_up(message.content):
                break
    answer = next((message.content for message in reversed(history) if message.role == "assistant"), "")
    before = " ".join(part[:200] for part in parts[:1] + parts[1:][-1:])
    names = [name for name in _names(answer) if name not in before and name not in question]
    return _cut(" ".join([before, *names, question]).strip())


def is_follow_up(question: str) -> bool:
    """Whether the question cannot be understood without what was said before."""
    if len(question) > _LONGEST_FOLLOW_UP:
        return False
    if _CJK.search(question):
        return _is_follow_up_zh(question)
    if _OPENING_EN.match(question):
        return True
    pronoun = _PRONOUN_EN.search(_EXPLETIVE_EN.sub(" ", question))
    if pronoun is not None and len(_own_words(question[: pronoun.start()])) <= 1:
        return True
    return not _own_words(question)


def _is_follow_up_zh(question: str) -> bool:
    if _OPENING_ZH.match(question) or _CLOSING_ZH.search(question):
        return True
    pronoun = _PRONOUN_ZH.search(question)
    if pronoun is not None and _own_characters(question[: pronoun.start()]) <= 2:
        return True
    return _own_characters(question) == 0


def _own_words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word.split("'")[0] not in _EMPTY_EN]


def _own_characters(text: str) -> int:
    rest = _EMPTY_ZH.sub("", text)
    return len(_CJK.findall(rest)) + 3 * len(_WORD.findall(rest))


def _names(answer: str) -> list[str]:
    """Names in the beginning of an answer: what is bold, quoted or capitalised, each once."""
    names: dict[str, None] = {}
    for match in _NAME.finditer(_CITATION.sub("", answer[:1_000])):
        name = next(group for group in match.groups() if group).strip()
        if name.lower() not in _EMPTY_EN and len(names) < _MOST_NAMES:
            names.setdefault(name)
    return list(names)


def _cut(query: str) -> str:
    """Both ends of a text that is longer than a query may be: a question stands at one of them."""
    query = query.strip()
    if len(query) <= _LONGEST_QUERY:
        return query
    half = _LONGEST_QUERY // 2 - 1
    return f"{query[:half]} {query[-half:]}"

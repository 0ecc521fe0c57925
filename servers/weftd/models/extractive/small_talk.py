"""Greetings, thanks and questions about the assistant itself: told apart from questions about documents."""

from __future__ import annotations

import re
from typing import Literal

from weftd.text.language import is_chinese
from weftd.text.tokens import fold

Talk = Literal["greeting", "thanks", "farewell", "assistant", "agreement", "unclear"]

_GREETING = (
    r"(?:你好|您好|你们好|大家好|哈喽|哈啰|嗨|嘿|早上好|上午好|中午好|下午好|晚上好|早安|午安|晚安|早"
    r"|在吗|在不在|你好吗|最近(?:好吗|怎么样)"
    r"|hi|hello|hey|hiya|howdy|greetings|yo|good (?:morning|afternoon|evening|day|night)"
    r"|how are you(?: doing)?(?: today)?"
    r"|what'?s up|how'?s it going|nice to meet you|are you there)"
    r"(?:[\s,，]*(?:呀|啊|哦|呢|吗|小助手|助手|there|all|everyone|everybody|assistant|bot|weft|again|today))*"
)
_PATTERNS: tuple[tuple[Talk, str], ...] = (
    ("greeting", rf"(?:{_GREETING}\W*)+"),
    (
        "thanks",
        r"(?:(?:非常|十分|太|多)?(?:谢谢|感谢|多谢|谢)(?:你|您|了|啦|你们|你的帮助|您的帮助)*|辛苦了|不客气"
        r"|(?:ok |okay |great |good |perfect )?(?:thank you|thanks|thx|ty|many thanks|cheers)"
        r"(?: (?:so|very) much| a lot| for (?:your|the) (?:help|answer))?)",
    ),
    (
        "farewell",
        r"(?:再见|拜拜|回见|明天见|下次见|(?:good ?)?bye(?: bye)?|see you(?: later| soon| tomorrow)?"
        r"|take care)",
    ),
    (
        "assistant",
        r"(?:你(?:是|叫)(?:谁|什么|什么名字|什么模型|哪个模型|机器人吗|ai吗|人工智能吗|真人吗)"
        r"|你是干什么的|你的名字是什么|你的名字"
        r"|你(?:都)?(?:能|会|可以)(?:做|干|帮我做|帮我干|为我做)?(?:什么|些什么|哪些事)|你有(?:什么"
        r"|哪些)(?:功能|能力|用)|(?:怎么|如何)(?:使用|用)(?:你|这个助手)"
        r"|(?:请|请你)?(?:自我介绍|介绍|介绍一下)(?:一下)?(?:你|你自己|自己)?|帮助|帮帮我|能帮我吗"
        r"|你能帮(?:助)?我吗"
        r"|who are you|what are you|what(?:'?s| is) your name|what can you do(?: for me)?"
        r"|what do you do|how can you help(?: me)?"
        r"|can you help(?: me)?|(?:please )?introduce yourself|tell me about yourself"
        r"|are you (?:an? )?(?:ai|bot|robot|human|chatgpt|gpt)"
        r"|how do (?:i use you|you work)|help(?: me)?)",
    ),
    (
        "agreement",
        r"(?:好的?|好吧|嗯+|行|可以|明白了?|知道了|了解了?|没问题|没事了?|对的?|是的|哈+|ok|okay|okey"
        r"|yes|yeah|yep|no|nope|sure|fine"
        r"|great|cool|nice|good|perfect|got it|i see|alright|lol|ha(?:ha)+)",
    ),
)
_COMPILED = tuple(
    (talk, re.compile(rf"\W*{pattern}(?:\W*(?:呀|啊|哦|呢|吗|吧|啦|了|please))*\W*"))
    for talk, pattern in _PATTERNS
)
_OPENING = re.compile(rf"^\W*(?:(?:{_GREETING}|请问)(?:[\s,，.。!！~～、:：]+|(?=请)))+", re.IGNORECASE)
_MAX_CHARACTERS = 80

_REPLIES: dict[Talk, tuple[str, str]] = {
    "greeting": (
        "你好！我可以根据你上传的文档回答问题，并标明出处。请直接提问，或者先上传文档。",
        "Hello! I answer questions from the documents you upload, and show where each answer comes from. "
        "Ask me something, or upload a document first.",
    ),
    "thanks": (
        "不客气！还有其他问题，随时问我。",
        "You are welcome! Ask me anything else about your documents.",
    ),
    "farewell": (
        "再见！需要查文档的时候再来找我。",
        "Goodbye! Come back whenever you need something from your documents.",
    ),
    "assistant": (
        "我是 Weft，一个文档问答助手。上传 PDF、Word、PPT、Excel、网页、Markdown 或文本文件后，"
        "我可以用中文或英文回答相关问题：\n\n"
        "- 直接引用文档中的原文，并用 [1] 这样的编号标明出处\n"
        "- 文档里没有答案时会如实说明，不会编造\n"
        "- 可以接着上一个问题追问",
        "I am Weft, an assistant that answers from your documents. Upload PDF, Word, PowerPoint, "
        "Excel, HTML, Markdown or text "
        "files, then ask about them in English or Chinese:\n\n"
        "- I quote the documents themselves and cite each source, as in [1]\n"
        "- I say so when they do not hold the answer, and never make one up\n"
        "- You can ask follow-up questions",
    ),
    "agreement": (
        "好的。还有什么想从文档里了解的吗？",
        "All right. What else would you like to know from your documents?",
    ),
    "unclear": (
        "我没有看懂这条消息。请用一句话提出关于文档的问题。",
        "I could not make out a question. Please ask about your documents in a sentence.",
    ),
}


def small_talk(text: str) -> Talk | None:
    """What kind of small talk the whole of `text` is; None where it asks something."""
    if not re.search(r"\w", text):
        return "unclear"
    if len(text) > _MAX_CHARACTERS:
        return None
    for candidate in (fold(text), fold(without_greeting(text))):
        for talk, pattern in _COMPILED:
            if pattern.fullmatch(candidate):
                return talk
    return None


def reply(talk: Talk, text: str) -> str:
    """The reply to `text`, in its language (English where it has no words)."""
    chinese, english = _REPLIES[talk]
    return chinese if is_chinese(text) else english


def without_greeting(text: str) -> str:
    """`text` without "你好，" or "Hi there," in front, as long as something is left."""
    rest = _OPENING.sub("", text).strip()
    return rest or text.strip()

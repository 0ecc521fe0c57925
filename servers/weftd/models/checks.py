"""What a `GenerateRequest` must be before a model sees it."""

from __future__ import annotations

from weft.v1.models_pb2 import GenerateRequest
from weftd.errors import InvalidArgument

_ROLES = ("user", "assistant", "system")
_MAX_MESSAGES = 200
_MAX_PASSAGES = 100
_MAX_CHARACTERS = 1_000_000
_MAX_TOKENS = 32_768
_MAX_TEMPERATURE = 2.0
_MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 64


def check_generate(request: GenerateRequest) -> None:
    """InvalidArgument naming each field that is wrong."""
    wrong: dict[str, str] = {}
    count = len(request.messages)
    if not 1 <= count <= _MAX_MESSAGES:
        wrong["messages"] = f"has {count} messages; send 1 to {_MAX_MESSAGES}, the question last"
    else:
        for number, message in enumerate(request.messages):
            if message.role not in _ROLES:
                wrong[f"messages[{number}].role"] = 'is none of "user", "assistant", "system"'
        last = request.messages[-1]
        if last.role in _ROLES and last.role != "user":
            wrong[f"messages[{count - 1}].role"] = 'is the last one and must be "user": the question'
        elif not last.content.strip():
            wrong[f"messages[{count - 1}].content"] = "is empty; it must hold the question"
    if len(request.passages) > _MAX_PASSAGES:
        wrong["passages"] = f"has {len(request.passages)} passages; send at most {_MAX_PASSAGES}"
    else:
        seen: set[int] = set()
        for number, passage in enumerate(request.passages):
            if passage.id == 0 or passage.id in seen:
                wrong[f"passages[{number}].id"] = "is 0 or given twice; number the passages from 1"
            seen.add(passage.id)
    size = sum(len(message.content) for message in request.messages) + len(request.prefix)
    size += sum(len(passage.content) for passage in request.passages)
    if size > _MAX_CHARACTERS and not wrong:
        wrong["messages"] = (
            f"and passages hold {size} characters; at most {_MAX_CHARACTERS} can be read at once"
        )
    if request.HasField("temperature") and not 0 <= request.temperature <= _MAX_TEMPERATURE:
        wrong["temperature"] = f"must be 0 to {_MAX_TEMPERATURE:g}"
    if request.HasField("max_tokens") and not 1 <= request.max_tokens <= _MAX_TOKENS:
        wrong["max_tokens"] = f"must be 1 to {_MAX_TOKENS}"
    if request.HasField("top_p") and not 0 < request.top_p <= 1:
        wrong["top_p"] = "must be above 0 and at most 1"
    if len(request.stop) > _MAX_STOPS:
        wrong["stop"] = f"has {len(request.stop)} texts; send at most {_MAX_STOPS}"
    for number, stop in enumerate(request.stop[:_MAX_STOPS]):
        if not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            wrong[f"stop[{number}]"] = f"has {len(stop)} characters; send 1 to {_MAX_STOP_CHARACTERS}"
    if wrong:
        raise InvalidArgument(wrong)

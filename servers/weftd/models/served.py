"""A causal model that Weft serves itself: on Triton, or in a process of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from weft.v1.common_pb2 import Usage
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.inference.port import TextGenerator, TextMessage, TextRequest

from .port import DEFAULT_MAX_TOKENS
from .prompt import chat_messages

__all__ = ["ServedModel"]


class ServedModel:
    """A `LanguageModel` over a `TextGenerator`. Closing an answer stops the model's loop for it at once."""

    can_continue = True

    def __init__(self, generator: TextGenerator, provider: str) -> None:
        """`provider` is "triton" or "local"; the model is named as the generator is."""
        self.model_id = generator.name
        self.provider = provider
        self._generator = generator

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        async with aclosing(self._generator.generate(_asked(request))) as pieces:
            async for piece in pieces:
                if text := piece.text.replace("\0", ""):
                    yield GenerateEvent(type="delta", content=text)
                if piece.finish_reason:
                    yield GenerateEvent(
                        type="done",
                        usage=Usage(
                            prompt_tokens=piece.prompt_tokens,
                            completion_tokens=piece.completion_tokens,
                            total_tokens=piece.prompt_tokens + piece.completion_tokens,
                        ),
                        finish_reason=piece.finish_reason,
                        model_version=piece.version,
                    )

    async def ping(self) -> None:
        """Returns where the model can write now. Raises `Unavailable`."""
        await self._generator.ping()

    async def close(self) -> None:
        await self._generator.close()


def _asked(request: GenerateRequest) -> TextRequest:
    messages = [TextMessage(role=each["role"], content=each["content"]) for each in chat_messages(request)]
    if request.prefix:
        messages.pop()  # the answer that was begun: the generator takes it by itself
    return TextRequest(
        messages=messages,
        prefix=request.prefix,
        temperature=request.temperature if request.HasField("temperature") else None,
        top_p=request.top_p if request.HasField("top_p") else None,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS,
        stop=tuple(request.stop),
    )

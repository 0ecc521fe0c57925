"""Language models behind any endpoint that speaks OpenAI's chat completions (Ark, Qwen, vLLM, Ollama …)."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weft.v1.common_pb2 import Usage
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.errors import WeftError
from weftd.rpc import caller

from .continuation import RepeatStripper
from .port import DEFAULT_MAX_TOKENS
from .prompt import chat_messages

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletionChunk

# After the text's end only the usage is still to come: not worth a long wait, nor a failure.
_USAGE_TIMEOUT_S = 2.0
_ADAPTABLE = ("max_tokens", "temperature", "top_p", "stop", "stream_options")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model: `model` is its name at `base_url` ("https://host/v1"), `model_id` its name here."""

    model_id: str
    base_url: str
    model: str
    api_key: str = field(default="", repr=False)
    can_continue: bool = False


class OpenAICompatible:
    """A `LanguageModel` at an endpoint.

    Nothing is retried here: the caller knows its deadline, and errors carry when to try again. Only where
    the endpoint names a parameter that it does not know, this and all later requests go without it. `usage`
    is what the endpoint counted, and empty where it does not say. `prefix` is sent as the assistant's last
    message with vLLM's `continue_final_message`.
    """

    provider = "openai"

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect_timeout_s: float = 5.0,
        first_token_timeout_s: float = 60.0,
        idle_timeout_s: float = 30.0,
    ) -> None:
        """The first piece must come in `first_token_timeout_s`, later ones in `idle_timeout_s` each."""
        self.model_id = endpoint.model_id
        self.can_continue = endpoint.can_continue
        self._endpoint = endpoint
        self._connect_timeout_s = connect_timeout_s
        self._first_token_timeout_s = first_token_timeout_s
        self._idle_timeout_s = idle_timeout_s
        self._client: AsyncOpenAI | None = None
        self._opening = asyncio.Lock()
        self._unsupported: set[str] = set()

    async def open(self) -> None:
        """Loads the client library (about a second, on a thread), as the first `generate` would."""
        async with self._opening:
            if self._client is not None:
                return
            openai: Any = await asyncio.to_thread(importlib.import_module, "openai")
            self._client = await asyncio.to_thread(
                openai.AsyncOpenAI,
                base_url=self._endpoint.base_url,
                api_key=self._endpoint.api_key or "none",
                max_retries=0,
                timeout=openai.Timeout(None, connect=self._connect_timeout_s, write=self._idle_timeout_s),
            )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        await self.open()
        from . import openai_errors as errors  # imports `openai`

        waited_s = self._first_token_timeout_s
        finish = ""
        usage = Usage()
        strip = RepeatStripper(request.prefix)
        async with aclosing(self._chunks(request)) as chunks:
            while True:
                try:
                    async with asyncio.timeout(waited_s):
                        chunk = await anext(chunks, None)
                except TimeoutError:
                    if not finish:
                        raise errors.timed_out(self.model_id, waited_s) from None
                    break
                except WeftError:
                    if not finish:
                        raise
                    break
                if chunk is None:
                    break
                if chunk.usage:
                    usage = _usage(chunk.usage)
                for choice in (chunk.choices or [])[:1]:
                    finish = choice.finish_reason or finish
                    content = (choice.delta and choice.delta.content) or ""
                    if not isinstance(content, str):
                        raise errors.broken(self.model_id)
                    if text := strip.feed(_sound(content)):
                        yield GenerateEvent(type="delta", content=text)
                waited_s = _USAGE_TIMEOUT_S if finish else self._idle_timeout_s
        if not finish:
            raise errors.broken(self.model_id)
        if finish == "content_filter":
            raise errors.refused(
                self.model_id, "The language model's endpoint refused to go on with this content."
            )
        if rest := strip.end():
            yield GenerateEvent(type="delta", content=rest)
        yield GenerateEvent(
            type="done", usage=usage, finish_reason="length" if finish == "length" else "stop"
        )

    async def _chunks(self, request: GenerateRequest) -> AsyncGenerator[ChatCompletionChunk, None]:
        from . import openai_errors as errors

        begun = False
        try:
            async with await self._create(request) as stream:
                begun = True
                async for chunk in stream:
                    yield chunk
        except Exception as error:  # the library lets those of its HTTP client and of JSON through
            timeout_s = self._connect_timeout_s
            raise errors.translated(error, self.model_id, begun=begun, connect_timeout_s=timeout_s) from None

    async def _create(self, request: GenerateRequest) -> AsyncStream[ChatCompletionChunk]:
        import openai

        assert self._client is not None  # `open` made it
        while True:
            try:
                stream: AsyncStream[ChatCompletionChunk] = await self._client.chat.completions.create(
                    **self._arguments(request)
                )
                return stream
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if error.param not in _ADAPTABLE or error.param in self._unsupported:
                    raise
                self._unsupported.add(error.param)

    def _arguments(self, request: GenerateRequest) -> dict[str, Any]:
        max_tokens = request.max_tokens if request.HasField("max_tokens") else DEFAULT_MAX_TOKENS
        arguments: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": chat_messages(request),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "extra_headers": caller.onward(),
        }
        if request.HasField("temperature"):
            arguments["temperature"] = request.temperature
        if request.HasField("top_p"):
            arguments["top_p"] = request.top_p
        if request.stop:
            arguments["stop"] = list(request.stop)
        if request.prefix:
            arguments["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
        for name in self._unsupported:
            arguments.pop(name, None)
        if "max_tokens" in self._unsupported:  # OpenAI's reasoning models know only the newer name
            arguments["max_completion_tokens"] = max_tokens
        return arguments


def _sound(text: str) -> str:
    """Without what can be neither sent nor stored: NUL, and halves of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _usage(counted: CompletionUsage) -> Usage:
    """The library checks no types: what is no count is left out."""
    try:
        return Usage(
            prompt_tokens=counted.prompt_tokens,
            completion_tokens=counted.completion_tokens,
            total_tokens=counted.total_tokens,
        )
    except (TypeError, ValueError):
        return Usage()

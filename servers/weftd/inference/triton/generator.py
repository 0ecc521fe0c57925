"""The language model that Triton serves."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import numpy as np

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd.errors import Unavailable
from weftd.inference.port import TextPiece, TextRequest
from weftd.inference.refusals import refused_text
from weftd.inference.triton.client import Answer, Tensors, Triton

__all__ = ["MODEL", "TritonGenerator"]

MODEL: Final = "llm"


class TritonGenerator:
    """A `TextGenerator` over the tensors of `triton_models/llm`. Closing it leaves `triton` open."""

    def __init__(self, triton: Triton, name: str = MODEL) -> None:
        """`name` is what people call the model; Triton always calls it llm."""
        self.name = name
        self._triton = triton

    async def generate(self, request: TextRequest) -> AsyncGenerator[TextPiece, None]:
        try:
            async with aclosing(self._triton.stream(MODEL, _inputs(request))) as answers:
                async for answer in answers:
                    yield _piece(answer)
        except Unavailable as error:
            # A model that refuses inside a stream has no status of its own there, only words.
            raise refused_text(self.name, error.detail) or error from None

    async def ping(self) -> None:
        if not await self._triton.is_ready(MODEL):
            raise Unavailable(
                ERROR_REASON_BACKEND_UNAVAILABLE,
                f"Triton does not serve {MODEL} just now. Try again in a second.",
                metadata={"backend": "triton", "model": MODEL},
            )

    async def close(self) -> None:
        """Nothing to let go of."""


def _inputs(request: TextRequest) -> Tensors:
    messages = json.dumps(request.messages, ensure_ascii=False)
    inputs = {
        "MESSAGES": np.array([messages.encode()], object),
        "MAX_TOKENS": np.array([request.max_tokens], np.int32),
    }
    if request.prefix:
        inputs["PREFIX"] = np.array([request.prefix.encode()], object)
    if request.temperature is not None:
        inputs["TEMPERATURE"] = np.array([request.temperature], np.float32)
    if request.top_p is not None:
        inputs["TOP_P"] = np.array([request.top_p], np.float32)
    if request.stop:
        inputs["STOP"] = np.array([each.encode() for each in request.stop], object)
    return inputs


def _piece(answer: Answer) -> TextPiece:
    outputs = answer.outputs
    return TextPiece(
        text=outputs["TEXT"][0].decode(),
        finish_reason=outputs["FINISH_REASON"][0].decode(),
        prompt_tokens=int(outputs["PROMPT_TOKENS"][0]),
        completion_tokens=int(outputs["COMPLETION_TOKENS"][0]),
        version=answer.version,
    )

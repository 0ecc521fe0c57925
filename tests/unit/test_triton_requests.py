"""What a model on Triton answers goes to callers only where it can be theirs."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_BROKEN
from weftd.errors import Unavailable
from weftd.inference.triton.client import Answer, Tensors, Triton
from weftd.inference.triton.requests import Requests, text_tensor


class FakeTriton:
    """Serves one model, whose answer is always the same."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        self._outputs = outputs

    async def is_ready(self, model: str) -> bool:
        return True

    async def config(self, model: str) -> Any:
        return model_config_pb2.ModelConfig(max_batch_size=10)

    async def infer(self, model: str, inputs: Tensors) -> Answer:
        return Answer(self._outputs, "1")


@pytest.mark.parametrize(
    "outputs",
    [
        {"ROWS": np.zeros((1, 4), np.float32)},
        {"ROWS": np.zeros((3, 4), np.float32)},
        {"ROWS": np.zeros((0, 4), np.float32)},
        {"ROWS": np.array([[1, 2], [np.nan, 1]], np.float32)},
        {"OTHERS": np.zeros((2, 4), np.float32)},
    ],
    ids=["too few", "too many", "none", "not a number", "another tensor"],
)
async def test_an_answer_that_does_not_fit_is_nobodys(outputs: dict[str, Any]) -> None:
    triton = cast(Triton, FakeTriton(outputs))
    requests: Requests[str] = Requests(
        triton,
        "rows",
        lambda texts: {"TEXT": text_tensor(texts)},
        lambda answer: cast(Any, answer.outputs["ROWS"]),
    )
    await requests.connect(delay_s=0, limit_s=1)
    with pytest.raises(Unavailable) as raised:
        await asyncio.wait_for(requests.run(["one", "two"], 3), 1)
    assert raised.value.reason == ERROR_REASON_MODEL_BROKEN
    await requests.close()

"""What a language model is to Weft, and the list of those that are configured."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_NOT_FOUND
from weft.v1.models_pb2 import GenerateEvent, GenerateRequest
from weftd.errors import NotFound

DEFAULT_MAX_TOKENS = 1024


class LanguageModel(Protocol):
    """Writes text. Safe to use from many tasks at once.

    `generate` gives `delta` events and then exactly one `done` event with `usage` (as far as the
    model tells it) and `finish_reason`; it leaves `seq` and `model_id` to the service. The request has been
    checked. Closing the iterator stops the model at once, whatever it waits for. Errors are raised
    as `weftd.errors`, also in the middle of a text: an end without `done` never happens.
    """

    @property
    def model_id(self) -> str: ...

    @property
    def provider(self) -> str:
        """ "extractive", "openai", "triton" or "local"."""

    @property
    def can_continue(self) -> bool:
        """Whether `request.prefix` is understood: the events then hold only what follows it."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]: ...

    async def close(self) -> None:
        """Lets go of connections. Generators that are still open break off."""


class ModelRegistry:
    """The configured models, the default one first."""

    def __init__(self, models: Sequence[LanguageModel]) -> None:
        """`models` holds at least one; the first is the default. ValueError where an id is given twice."""
        if not models:
            raise ValueError("No language model is configured: name at least one.")
        self._models = {model.model_id: model for model in models}
        if len(self._models) != len(models):
            raise ValueError("Two language models have the same model_id: give each its own.")
        self.default = models[0]

    def __iter__(self) -> Iterator[LanguageModel]:
        return iter(self._models.values())

    def get(self, model_id: str) -> LanguageModel:
        """The model of that id, the default one where it is empty. NotFound where there is none."""
        if not model_id:
            return self.default
        model = self._models.get(model_id)
        if model is None:
            raise NotFound(
                ERROR_REASON_MODEL_NOT_FOUND,
                "No language model of that id is configured. ListModels names those that are.",
                metadata={"model_id": model_id[:200]},
            )
        return model

    async def close(self) -> None:
        for model in self:
            await model.close()

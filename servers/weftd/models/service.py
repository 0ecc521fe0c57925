"""ModelService: the one door to language models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
import prometheus_client
import structlog

from weft.v1 import models_pb2, models_pb2_grpc
from weft.v1.error_reason_pb2 import (
    ERROR_REASON_MODEL_CANNOT_CONTINUE,
    ERROR_REASON_NO_MODEL_REPOSITORY,
    ERROR_REASON_OVERLOADED,
)
from weftd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

from .checks import check_generate
from .port import LanguageModel, ModelRegistry
from .versions.publishing import Publishing

_log = structlog.get_logger()
_OPEN = prometheus_client.Gauge(
    "weft_model_generators_open", "Generators of language models that are open now.", ["model_id"]
)
_MAX_PAGE_SIZE = 100

Context = grpc.aio.ServicerContext[Any, Any]


class ModelService(models_pb2_grpc.ModelServiceServicer):
    """`open_generators` counts the models' generators that are open now, for metrics and tests."""

    def __init__(
        self, models: ModelRegistry, publishing: Publishing | None = None, *, max_generators: int = 1000
    ) -> None:
        """`max_generators` texts are written at once at most; one more is refused with OVERLOADED.

        Without `publishing` no Triton is configured.
        """
        self._models = models
        self._publishing = publishing
        self._slots = asyncio.Semaphore(max_generators)
        self.open_generators = 0

    async def Generate(
        self, request: models_pb2.GenerateRequest, context: Context
    ) -> AsyncGenerator[models_pb2.GenerateEvent, None]:
        check_generate(request)
        model = self._models.get(request.model_id)
        if request.prefix and not model.can_continue:
            raise FailedPrecondition(
                ERROR_REASON_MODEL_CANNOT_CONTINUE,
                "This model cannot go on with a text that was begun. Ask again without `prefix`.",
                metadata={"model_id": model.model_id},
            )
        if self._slots.locked():
            raise ResourceExhausted(
                ERROR_REASON_OVERLOADED, "Too many texts are being written at once. Try again in a second."
            )
        async with self._slots, aclosing(self._counted(model, request)) as events:
            seq = 0
            async for event in events:
                seq += 1
                event.seq = seq
                yield event

    async def _counted(
        self, model: LanguageModel, request: models_pb2.GenerateRequest
    ) -> AsyncGenerator[models_pb2.GenerateEvent, None]:
        gauge = _OPEN.labels(model.model_id)
        self.open_generators += 1
        gauge.inc()
        try:
            async with aclosing(model.generate(request)) as events:
                async for event in events:
                    if event.type == "done":
                        event.model_id = model.model_id
                        _log.info(
                            "generated",
                            model_id=model.model_id,
                            finish_reason=event.finish_reason,
                            passages=len(request.passages),
                            completion_tokens=event.usage.completion_tokens,
                        )
                    yield event
        finally:
            self.open_generators -= 1
            gauge.dec()

    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: Context
    ) -> models_pb2.ListModelsResponse:
        size = request.page_size or _MAX_PAGE_SIZE
        if size > _MAX_PAGE_SIZE:
            raise InvalidArgument(
                {"page_size": f"is {size}; at most {_MAX_PAGE_SIZE} models are listed at once"}
            )
        models = list(self._models)
        ids = [model.model_id for model in models]
        if request.page_token and request.page_token not in ids:
            raise InvalidArgument({"page_token": "is none that ListModels gave; start with an empty one"})
        start = ids.index(request.page_token) + 1 if request.page_token else 0
        page = models[start : start + size]
        return models_pb2.ListModelsResponse(
            models=[
                models_pb2.Model(
                    model_id=model.model_id,
                    provider=model.provider,
                    can_continue=model.can_continue,
                    default=model is self._models.default,
                )
                for model in page
            ],
            next_page_token=page[-1].model_id if start + size < len(models) else "",
        )

    async def PublishModel(
        self, request_iterator: AsyncIterator[models_pb2.PublishModelRequest], context: Context
    ) -> models_pb2.PublishModelResponse:
        return await self._versions().publish(request_iterator)

    async def ListModelVersions(
        self, request: models_pb2.ListModelVersionsRequest, context: Context
    ) -> models_pb2.ListModelVersionsResponse:
        return await self._versions().list_versions()

    async def RollbackModel(
        self, request: models_pb2.RollbackModelRequest, context: Context
    ) -> models_pb2.RollbackModelResponse:
        return await self._versions().rollback(request)

    async def WatchModels(
        self, request: models_pb2.WatchModelsRequest, context: Context
    ) -> AsyncGenerator[models_pb2.WatchModelsEvent, None]:
        async with aclosing(self._versions().watch()) as events:
            seq = 0
            async for event in events:
                seq += 1
                event.seq = seq
                yield event

    def _versions(self) -> Publishing:
        if self._publishing is None:
            raise FailedPrecondition(
                ERROR_REASON_NO_MODEL_REPOSITORY,
                "No Triton is configured here, so there are no versions of models. Start Weft with "
                "`weft up --triton`, or set WEFT_TRITON_URL and WEFT_TRITON_REPOSITORY.",
            )
        return self._publishing

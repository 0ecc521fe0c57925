"""Which adapter stands behind each model, and who may publish versions of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weftd.addresses import endpoint
from weftd.compose import CannotStart, plainly
from weftd.envoy.config import Endpoint
from weftd.rpc.drain import Drain
from weftd.settings import Settings

# They load slowly, and few programs need all.
if TYPE_CHECKING:
    from weftd.inference.port import Embedder, Reranker, TextGenerator
    from weftd.inference.triton.client import Triton
    from weftd.models.port import ModelRegistry
    from weftd.models.versions.publishing import Publishing

__all__ = [
    "language_models",
    "models_python",
    "open_embedder",
    "open_publishing",
    "open_reranker",
    "open_triton",
    "triton_address",
]


def models_python(settings: Settings) -> Path:
    """The interpreter of the models' own environment, which `make triton` makes; it may be missing."""
    return settings.models_python or Path(sys.prefix) / "models" / "bin" / "python"


def triton_address(url: str) -> Endpoint:
    """Of WEFT_TRITON_URL. CannotStart where it is none."""
    try:
        return endpoint(url.removeprefix("grpc://").rstrip("/"))
    except ValueError:
        raise CannotStart(f"WEFT_TRITON_URL={url} is no address: write grpc://host:port.") from None


@asynccontextmanager
async def open_triton(settings: Settings) -> AsyncIterator[Triton]:
    """Calls to the Triton of WEFT_TRITON_URL."""
    from weftd.inference.triton.client import Triton

    triton = Triton(str(triton_address(settings.triton_url)))
    try:
        yield triton
    finally:
        await triton.close()


@asynccontextmanager
async def open_publishing(settings: Settings, drain: Drain) -> AsyncIterator[Publishing | None]:
    """Versions of Triton's models; None where no Triton is configured."""
    if not settings.triton_url:
        yield None
        return
    from weftd.models.versions.publishing import Publishing
    from weftd.models.versions.store import VersionStore

    directory = settings.data.absolute() / "triton"
    with plainly():
        store = VersionStore(settings.triton_repository or str(directory / "models"))
    async with open_triton(settings) as triton:
        publishing = Publishing(triton, store, directory / "publishing", drain)
        sweeping = asyncio.create_task(publishing.sweep(), name="sweep of model versions")
        try:
            yield publishing
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)


@asynccontextmanager
async def open_embedder(settings: Settings) -> AsyncIterator[Embedder]:
    """The model that embeds: on Triton where one is set, else in this process."""
    async with AsyncExitStack() as stack:
        embedder: Embedder
        with plainly():
            if settings.triton_url:
                from weftd.inference.triton.embedder import TritonEmbedder

                triton = await stack.enter_async_context(open_triton(settings))
                embedder = await TritonEmbedder.connect(
                    triton, settings.embedder, delay_s=settings.batch_delay_ms / 1_000
                )
            else:
                from weftd.inference.onnx_embedder import open_embedder as load

                embedder = await asyncio.to_thread(load, settings.embedder, **_in_process(settings))
        stack.push_async_callback(embedder.close)
        yield embedder


@asynccontextmanager
async def open_reranker(settings: Settings) -> AsyncIterator[Reranker | None]:
    """The model that puts passages in order, likewise; None where none is set."""
    if settings.reranker is None:
        yield None
        return
    async with AsyncExitStack() as stack:
        reranker: Reranker
        with plainly():
            if settings.triton_url:
                from weftd.inference.triton.reranker import TritonReranker

                triton = await stack.enter_async_context(open_triton(settings))
                reranker = await TritonReranker.connect(
                    triton, settings.reranker, delay_s=settings.batch_delay_ms / 1_000
                )
            else:
                from weftd.inference.onnx_reranker import open_reranker as load

                reranker = await asyncio.to_thread(load, settings.reranker, **_in_process(settings))
        stack.push_async_callback(reranker.close)
        yield reranker


def _in_process(settings: Settings) -> dict[str, Any]:
    """How a model runs here."""
    return {
        "cache": settings.data.absolute() / "models",
        "threads": settings.threads,
        "batch_size": settings.batch_size,
        "delay_s": settings.batch_delay_ms / 1_000,
        "device": settings.device,
    }


@asynccontextmanager
async def _text_generator(settings: Settings) -> AsyncIterator[TextGenerator | None]:
    """The language model of WEFT_LLM, or that of a Triton which serves one; None where there is neither."""
    async with AsyncExitStack() as stack:
        name = settings.llm.resolve().name if settings.llm else ""
        if settings.triton_url:
            from weftd.inference.triton.generator import MODEL, TritonGenerator

            triton = await stack.enter_async_context(open_triton(settings))
            served = bool(name) or await triton.is_ready(MODEL)
            yield TritonGenerator(triton, name or MODEL) if served else None
        elif settings.llm:
            from weftd.inference.text_process import ModelNotLoaded, TextProcess

            device = "cuda" if settings.device == "gpu" else "cpu"
            generator = TextProcess(
                models_python(settings), settings.llm.absolute(), device=device, threads=settings.threads
            )
            stack.push_async_callback(generator.close)
            try:
                await generator.open()
            except ModelNotLoaded as error:
                raise CannotStart(f"WEFT_LLM={settings.llm}: {error}") from error
            yield generator
        else:
            yield None


@asynccontextmanager
async def language_models(settings: Settings, embedder: Embedder) -> AsyncIterator[ModelRegistry]:
    """The configured endpoints in their order, the model that Weft serves itself, the extractive answerer."""
    from weftd.models.extractive.model import ExtractiveModel
    from weftd.models.openai_compatible import Endpoint as ModelEndpoint
    from weftd.models.openai_compatible import OpenAICompatible
    from weftd.models.port import ModelRegistry
    from weftd.models.served import ServedModel

    endpoints = [
        OpenAICompatible(
            ModelEndpoint(
                model_id=each.model_id,
                base_url=each.base_url,
                model=each.model or each.model_id,
                api_key=os.environ.get(each.api_key_env, "") if each.api_key_env else "",
                can_continue=each.can_continue,
            )
        )
        for each in settings.endpoints
    ]
    async with _text_generator(settings) as generator:
        own = [ServedModel(generator, "triton" if settings.triton_url else "local")] if generator else []
        with plainly():
            registry = ModelRegistry([*endpoints, *own, ExtractiveModel(embedder=embedder)])
            for endpoint in endpoints:
                await endpoint.open()  # or the first question waits for the client library
        try:
            yield registry
        finally:
            await registry.close()

"""Which adapter stands behind each port: the one place that reads settings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weftd.envoy.config import Endpoint, EnvoyConfig
from weftd.envoy.process import EnvoyProcess
from weftd.keys import ensure_keys
from weftd.rpc.auth import TokenVerifier, mint
from weftd.settings import Settings

# Stores and models are imported where they are opened: they load slowly, and few programs need all.
if TYPE_CHECKING:
    from weftd.inference.onnx_embedder import OnnxEmbedder
    from weftd.models.port import ModelRegistry
    from weftd.stores.blobs.directory import DirectoryBlobs
    from weftd.stores.passages.port import DensePassages, LexicalPassages, PassageStore
    from weftd.stores.records.engine import Records

__all__ = [
    "Passages",
    "envoy_process",
    "language_models",
    "make_token",
    "open_blobs",
    "open_embedder",
    "open_passages",
    "open_records",
    "token_verifier",
]


@dataclass(frozen=True, slots=True)
class Passages:
    """The two routes to passages, and the distinct stores behind them with their addresses."""

    dense: DensePassages
    lexical: LexicalPassages
    stores: dict[str, PassageStore]


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncIterator[Records]:
    """The records, brought to the newest schema first."""
    from weftd.stores.records.engine import Records
    from weftd.stores.records.migrate import migrate

    await asyncio.to_thread(migrate, settings.records)
    records = Records(settings.records)
    try:
        yield records
    finally:
        await records.close()


@asynccontextmanager
async def open_passages(settings: Settings) -> AsyncIterator[Passages]:
    """Milvus where it is configured (words stay in LanceDB before its 2.5), else LanceDB for both."""
    from weftd.stores.passages.lance import LancePassages

    url = settings.passages_url
    lance = await LancePassages.connect(
        settings.data.absolute() / "passages" if not url or url.startswith("milvus") else url
    )
    if not url.startswith("milvus"):
        passages = Passages(lance, lance, {url or str(settings.data.absolute() / "passages"): lance})
    else:
        from weftd.stores.passages.milvus import MilvusPassages

        address = url.split("://", 1)[1]
        secure = "https" if url.startswith("milvuss://") else "http"
        token = settings.passages_token.get_secret_value()
        milvus = await MilvusPassages.connect(f"{secure}://{address}", token)
        stores: dict[str, PassageStore] = {address: milvus}
        if not milvus.has_words:
            stores["passages"] = lance
        passages = Passages(milvus, milvus if milvus.has_words else lance, stores)
    try:
        yield passages
    finally:
        for store in passages.stores.values():
            await store.close()


@asynccontextmanager
async def open_embedder(settings: Settings) -> AsyncIterator[OnnxEmbedder]:
    """The model that embeds, in this process."""
    from weftd.inference.open import open_embedder as load

    cache = settings.data.absolute() / "models"
    embedder = await asyncio.to_thread(load, settings.embedder, cache, settings.threads)
    try:
        yield embedder
    finally:
        await embedder.close()


def open_blobs(settings: Settings) -> DirectoryBlobs:
    """Where uploaded files are kept."""
    from weftd.stores.blobs.directory import DirectoryBlobs

    return DirectoryBlobs(settings.data.absolute() / "blobs")


@asynccontextmanager
async def language_models(settings: Settings, embedder: OnnxEmbedder) -> AsyncIterator[ModelRegistry]:
    """The configured endpoints in their order, then the extractive answerer."""
    from weftd.models.extractive.model import ExtractiveModel
    from weftd.models.openai_compatible import Endpoint as ModelEndpoint
    from weftd.models.openai_compatible import OpenAICompatible
    from weftd.models.port import ModelRegistry

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
    registry = ModelRegistry([*endpoints, ExtractiveModel(embedder=embedder)])
    try:
        yield registry
    finally:
        await registry.close()


def token_verifier(settings: Settings) -> TokenVerifier:
    """What every service verifies tokens with."""
    _ensure_keys(settings)
    return TokenVerifier(issuer=settings.jwt_issuer, audience=settings.jwt_audience, jwks_file=settings.jwks)


def make_token(settings: Settings, *, tenant: str, subject: str, role: str, lifetime_s: float) -> str:
    """A token signed with the mesh's own key. ValueError says what is wrong with a claim."""
    _ensure_keys(settings)
    return mint(
        settings.jwks,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        tenant=tenant,
        subject=subject,
        roles=[role],
        ttl_s=lifetime_s,
    )


def envoy_process(settings: Settings) -> EnvoyProcess:
    """Envoy in front of the services of the settings."""
    _ensure_keys(settings)
    data = settings.data.absolute()
    (data / "logs").mkdir(exist_ok=True)
    config = EnvoyConfig(
        listen=Endpoint(settings.host, settings.port),
        services={
            name: (_endpoint(settings.address(name)),)
            for name in ("chat", "retrieval", "knowledge", "models")
        },
        edge=_endpoint(settings.edge_address),
        jwks_file=settings.jwks,
        access_log=data / "logs" / "access.log",
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        allowed_origins=tuple(settings.allowed_origins),
        requests_per_minute=settings.requests_per_minute,
        otlp=_endpoint(settings.otlp_endpoint.split("://")[-1]) if settings.otlp_endpoint else None,
        metrics=_endpoint(settings.envoy_metrics_address) if settings.envoy_metrics_address else None,
    )
    return EnvoyProcess(config, data / "envoy")


def _ensure_keys(settings: Settings) -> None:
    if settings.jwks_file is None:
        ensure_keys(settings.jwks)


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(host.strip("[]"), int(port))

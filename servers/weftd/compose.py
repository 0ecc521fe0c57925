"""Which adapter stands behind each port; of models see `compose_models`. These two alone read settings."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weftd.addresses import endpoint, endpoints
from weftd.envoy.config import Endpoint, EnvoyConfig
from weftd.envoy.process import EnvoyError, EnvoyProcess
from weftd.keys import ensure_keys
from weftd.rpc.auth import TokenVerifier, mint
from weftd.settings import SERVICES, Settings

# Stores are imported where they are opened: they load slowly, and few programs need all.
if TYPE_CHECKING:
    from weftd.stores.blobs.directory import DirectoryBlobs
    from weftd.stores.passages.port import DensePassages, LexicalPassages, PassageStore
    from weftd.stores.records.engine import Records

__all__ = [
    "METRICS_FD",
    "CannotStart",
    "Passages",
    "database_plainly",
    "envoy_config",
    "envoy_process",
    "jobs_metrics_socket",
    "make_data_directory",
    "make_token",
    "metrics_socket",
    "open_blobs",
    "open_passages",
    "open_records",
    "plainly",
    "token_verifier",
    "triton_metrics_socket",
]


# The socket that a supervisor opened for this process: it serves one after the other, and never nobody.
METRICS_FD = "WEFT_METRICS_FD"


class CannotStart(Exception):
    """Why a program cannot start, and what to do."""


@contextmanager
def plainly() -> Iterator[None]:
    """CannotStart for what the operator has to mend: a setting, a file, a port."""
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise CannotStart(f"{error.strerror or error}{where}") from error
    except (ValueError, EnvoyError) as error:
        raise CannotStart(str(error)) from error


@contextmanager
def database_plainly(name: str) -> Iterator[None]:
    """CannotStart for a database that does not answer or cannot be used; `name` is "records" or "jobs"."""
    from sqlalchemy.exc import DatabaseError, OperationalError

    try:
        yield
    except OperationalError as error:
        raise CannotStart(f"The {name} database does not answer: {error.orig}") from error
    except DatabaseError as error:
        raise CannotStart(
            f"The {name} database cannot be used: {error.orig}. Mend what it says, or restore a backup."
        ) from error


def make_data_directory(settings: Settings) -> None:
    """Makes the directory of all that is kept, closed to others. CannotStart where that cannot be."""
    with plainly():
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Passages:
    """The two routes to passages, and the distinct stores behind them with their addresses."""

    dense: DensePassages
    lexical: LexicalPassages
    stores: dict[str, PassageStore]


@asynccontextmanager
async def open_records(settings: Settings) -> AsyncIterator[Records]:
    """The records, brought to the newest schema first."""
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    from weftd.stores.records.engine import Records
    from weftd.stores.records.migrate import NewerDatabase, migrate

    try:
        with database_plainly("records"):
            await asyncio.to_thread(migrate, settings.records)
    except NewerDatabase as error:
        raise CannotStart(str(error)) from error
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        raise CannotStart(
            "WEFT_RECORDS_URL is no address of a database: postgresql+psycopg://user:password@host/database."
        ) from error
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


def open_blobs(settings: Settings) -> DirectoryBlobs:
    """Where uploaded files are kept."""
    from weftd.stores.blobs.directory import DirectoryBlobs

    with plainly():
        return DirectoryBlobs(settings.data.absolute() / "blobs")


def token_verifier(settings: Settings) -> TokenVerifier:
    """What every service verifies tokens with."""
    with plainly():
        _ensure_keys(settings)
        return TokenVerifier(
            issuer=settings.jwt_issuer, audience=settings.jwt_audience, jwks_file=settings.jwks
        )


def make_token(settings: Settings, *, tenant: str, subject: str, role: str, lifetime_s: float) -> str:
    """A token signed with the mesh's own key. CannotStart says what is wrong with a claim or the key."""
    with plainly():
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


def envoy_config(settings: Settings) -> EnvoyConfig:
    """What Envoy has to know for the services of the settings."""
    collector = settings.otlp_endpoint.split("://")[-1].rstrip("/")
    with plainly():
        _ensure_keys(settings)
        return EnvoyConfig(
            listen=Endpoint(settings.host, settings.port),
            services={name: endpoints(settings.address(name)) for name in SERVICES if name != "edge"},
            edge=endpoints(settings.edge_address),
            jwks_file=settings.jwks,
            access_log=settings.data.absolute() / "logs" / "access.log",
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            allowed_origins=tuple(settings.allowed_origins),
            requests_per_minute=settings.requests_per_minute,
            otlp=endpoint(collector) if collector else None,
            metrics=endpoint(settings.envoy_metrics_address) if settings.envoy_metrics_address else None,
        )


def envoy_process(settings: Settings) -> EnvoyProcess:
    """Envoy in front of the services of the settings."""
    return EnvoyProcess(envoy_config(settings), settings.data.absolute() / "envoy")


def metrics_socket(settings: Settings, worker: int = 0) -> socket.socket | None:
    """What `/metrics` of a worker listens on: WEFT_METRICS_ADDRESS, its port counted up by `worker`.

    None: nowhere. CannotStart where that cannot be.
    """
    if settings.metrics_address and METRICS_FD in os.environ:
        return socket.socket(fileno=int(os.environ[METRICS_FD]))
    return _listening("WEFT_METRICS_ADDRESS", settings.metrics_address, worker)


def jobs_metrics_socket(settings: Settings) -> socket.socket | None:
    """The same for a job process: WEFT_JOBS_METRICS_ADDRESS."""
    return _listening("WEFT_JOBS_METRICS_ADDRESS", settings.jobs_metrics_address)


def triton_metrics_socket(settings: Settings) -> socket.socket | None:
    """The same for `weft triton`: WEFT_TRITON_METRICS_ADDRESS."""
    return _listening("WEFT_TRITON_METRICS_ADDRESS", settings.triton_metrics_address)


def _listening(name: str, address: str, further: int = 0) -> socket.socket | None:
    if not address:
        return None
    try:
        first = endpoint(address)
        family = socket.AF_INET6 if ":" in first.host else socket.AF_INET
        return socket.create_server((first.host, first.port + further), family=family)
    except (ValueError, OSError, OverflowError) as error:
        raise CannotStart(
            f"{name}={address} cannot be listened on ({error}). Choose another host:port."
        ) from error


def _ensure_keys(settings: Settings) -> None:
    if settings.jwks_file is None:
        ensure_keys(settings.jwks)

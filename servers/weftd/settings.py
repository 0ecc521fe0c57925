"""What an operator may set, all from the environment: `WEFT_` and the name in capitals.

Read once, by the programs in `__main__.py`; nothing below `compose.py` sees them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

__all__ = ["SERVICES", "Endpoint", "ServiceName", "Settings", "misspelt"]

ServiceName = Literal["chat", "retrieval", "knowledge", "models", "edge"]
SERVICES: tuple[ServiceName, ...] = ("chat", "retrieval", "knowledge", "models", "edge")
_GRPC_ADDRESS = "127.0.0.1:50051"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Endpoint(BaseModel):
    """One OpenAI-compatible endpoint: an element of the JSON list in `WEFT_ENDPOINTS`."""

    model_id: str = Field(min_length=1, description="How requests name it.")
    base_url: str = Field(pattern=r"^https?://", description="Such as http://127.0.0.1:11434/v1")
    model: str = Field(default="", description="The endpoint's own name for it. Empty: model_id.")
    api_key_env: str = Field(default="", description="Variable that holds the key. Empty: no key.")
    can_continue: bool = Field(default=False, description="Goes on with a message that was begun.")


def misspelt(environment: Iterable[str]) -> dict[str, str]:
    """Names that look like a setting but are none, each with the one that was probably meant.

    Others that begin alike are left alone: an orchestrator makes such names for its own use.
    """
    known = {f"WEFT_{name.upper()}" for name in Settings.model_fields}
    of_clients = {"WEFT_TOKEN", "WEFT_ADDRESS"}
    meant: dict[str, str] = {}
    for name in environment:
        if name.startswith("WEFT_") and name not in known | of_clients:
            meant.update((name, each) for each in get_close_matches(name, known, n=1, cutoff=0.85))
    return meant


class Settings(BaseSettings):
    """Every setting has a default that works on a laptop; an empty variable is as good as none."""

    model_config = SettingsConfigDict(env_prefix="WEFT_", env_ignore_empty=True, extra="forbid", frozen=True)

    data: Path = Field(default=Path(".weft"), description="Directory of all that is kept.")
    host: str = Field(default="127.0.0.1", description="Address that Envoy listens on.")
    port: int = Field(default=8080, ge=1, le=65535, description="Port that Envoy listens on.")

    records_url: str = Field(default="", description="postgresql+psycopg://user:password@host/database")
    passages_url: str = Field(default="", description="milvus://host:19530, or s3://… for LanceDB.")
    passages_token: SecretStr = Field(default=SecretStr(""), description="For Milvus.")
    embedder: Path | None = Field(default=None, description="Directory of another embedding model.")
    reranker: Path | None = Field(default=None, description="Directory of a cross-encoder. Empty: none.")
    llm: Path | None = Field(default=None, description="Directory of a causal language model. Empty: none.")
    threads: int = Field(default=2, ge=1, le=64, description="Threads that embed.")
    batch_size: int = Field(default=10, ge=1, le=256, description="Texts a model takes at once. 1: alone.")
    batch_delay_ms: float = Field(
        default=100, ge=0, le=10_000, description="While a batch runs, the next fills for so long at most."
    )
    device: Literal["cpu", "gpu"] = Field(default="cpu", description="What the models run on.")
    models_python: Path | None = Field(
        default=None, description="Python of the models' own environment. Empty: the one of `make triton`."
    )
    triton_url: str = Field(default="", description="grpc://host:8001 of a Triton that runs elsewhere.")
    triton_metrics_address: str = Field(
        default="", description="host:port of /metrics of `weft triton`, Triton's own with it. Empty: none."
    )
    triton_traces: str = Field(default="", description="Of Triton: http://host:4318/v1/traces. Empty: none.")
    triton_repository: str = Field(
        default="", description="Its models: a directory, or s3://bucket/path. Empty: below WEFT_DATA."
    )
    endpoints: list[Endpoint] = Field(default_factory=list, description="Language models, the default first.")

    jwks_file: Path | None = Field(default=None, description="Keys that verify tokens. Empty: one is made.")
    jwt_issuer: str = "weft"
    jwt_audience: str = "weft"
    dev_token: bool = Field(default=True, description="On loopback the page gets a token by itself.")
    allowed_hosts: list[str] = Field(default_factory=list, description="The page's, beside loopback.")
    allowed_origins: list[str] = Field(default_factory=list, description="Other pages that may call.")
    requests_per_minute: int = Field(default=6000, ge=1, description="Per tenant.")

    chat_address: str = _GRPC_ADDRESS
    retrieval_address: str = _GRPC_ADDRESS
    knowledge_address: str = _GRPC_ADDRESS
    models_address: str = _GRPC_ADDRESS
    edge_address: str = "127.0.0.1:50080"
    metrics_address: str = Field(default="", description="host:port of /metrics. Empty: none.")
    jobs_metrics_address: str = Field(default="", description="Likewise of the job process. Empty: none.")
    envoy_metrics_address: str = Field(default="", description="host:port of Envoy's own. Empty: none.")
    otlp_endpoint: str = Field(default="", description="Traces go to http://host:4317. Empty: none.")

    resume_grace_s: float = Field(
        default=5.0, ge=0, le=300, description="A turn waits so long for its client."
    )
    drain_grace_s: float = Field(default=10.0, ge=0, le=600, description="Running turns may finish.")
    upload_limit_mb: int = Field(default=200, ge=1, le=4000, description="Largest file.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("triton_url")
    @classmethod
    def _grpc(cls, url: str) -> str:
        if url and not url.startswith("grpc://"):
            raise ValueError(f"{url} is no address of a Triton: write grpc://host:port.")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _keys_for_others(self) -> Settings:
        if self.host not in _LOOPBACK and "dev_token" in self.model_fields_set and self.dev_token:
            raise ValueError(
                "WEFT_DEV_TOKEN=true gives anyone who can reach WEFT_HOST a token: "
                "listen on 127.0.0.1, or set WEFT_DEV_TOKEN=false and issue tokens yourself (`weft token`)."
            )
        return self

    def address(self, service: ServiceName) -> str:
        """Of a service: host:port, or several as `weftd.addresses` reads them."""
        return str(getattr(self, f"{service}_address"))

    @property
    def gives_dev_token(self) -> bool:
        """Only on loopback: elsewhere anyone who reaches the port would be let in.

        Where the page is served to other machines, so is Envoy, whatever `host` says here.
        """
        hosts = [self.host, *(each.strip().rpartition(":")[0] for each in self.edge_address.split(","))]
        return self.dev_token and all(host.strip("[]") in _LOOPBACK for host in hosts)

    @property
    def records(self) -> str:
        """SQLAlchemy URL of the records."""
        return self.records_url or f"sqlite:///{self.data.absolute() / 'records.db'}"

    @property
    def jobs(self) -> str:
        """SQLAlchemy URL of the durable jobs' own tables."""
        return self.records_url or f"sqlite:///{self.data.absolute() / 'jobs.db'}"

    @property
    def jwks(self) -> Path:
        """The file of keys."""
        return self.jwks_file or self.data.absolute() / "jwks.json"

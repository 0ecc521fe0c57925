"""What the edge has to know: plain values, nothing of Envoy's own language."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CONTRACT", "Endpoint", "EnvoyConfig", "contract_descriptors"]

CONTRACT = Path(__file__).parent / "weft.binpb"
"""The serialized `FileDescriptorSet` of the contract, exchanged when another version is installed."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A TCP address: an IP address, or a DNS name of which every address is used, and a port."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        """Whether `host` is an IP address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def contract_descriptors() -> bytes:
    """What is in `CONTRACT` now."""
    return CONTRACT.read_bytes()


@dataclass(frozen=True, slots=True)
class EnvoyConfig:
    """Everything that the edge's configuration is made from.

    `services` maps the name of each proto file with a service in it (`chat`, `knowledge`, `retrieval`,
    `models`) to the gRPC servers that serve it; several may share a server. `edge` are the HTTP servers
    with the page and the development token.

    Tokens are signed with one of the keys of `jwks_file` (RFC 7517: `RSA` for RS256, `oct` for HS256). No
    other `issuer` or `audience` is accepted.
    `allowed_origins` are exact origins ("https://app.example.com") that browsers may call from; the
    page's own needs none.

    `requests_per_minute` holds for each tenant that `tenant_requests_per_minute` does not name; a stream
    counts once. `body_limit_bytes` is for JSON bodies; uploads are passed on in pieces, without a limit.

    `access_log` is a file, `otlp` an OTLP gRPC collector, `metrics` where Prometheus may scrape
    `/stats/prometheus` and nothing else; None: none. A `listen` port of 0 takes any free one.

    ValueError says which of them cannot be.
    """

    listen: Endpoint
    services: Mapping[str, tuple[Endpoint, ...]]
    edge: tuple[Endpoint, ...]
    jwks_file: Path
    access_log: Path
    issuer: str = "weft"
    audience: str = "weft"
    allowed_origins: tuple[str, ...] = ()
    requests_per_minute: int = 6000
    tenant_requests_per_minute: Mapping[str, int] = field(default_factory=dict)
    body_limit_bytes: int = 4 << 20
    otlp: Endpoint | None = None
    metrics: Endpoint | None = None
    descriptors: bytes = field(default_factory=contract_descriptors, repr=False)

    def __post_init__(self) -> None:
        for own in (self.listen, *([self.metrics] if self.metrics else [])):
            if not own.is_address:
                raise ValueError(f"{own.host} is no IP address: listen on 127.0.0.1, ::1, 0.0.0.0 or ::.")
        limits = {"every tenant": self.requests_per_minute, **self.tenant_requests_per_minute}
        for tenant, limit in limits.items():
            if limit < 1:
                raise ValueError(f"The limit of {tenant} is {limit} requests a minute: set at least 1.")

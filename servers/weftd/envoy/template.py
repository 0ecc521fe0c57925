"""From `EnvoyConfig` to all files that Envoy reads: its bootstrap and its file-based xDS resources.

What changes under open streams, and how:

    routes.json     routes, contract, limits, origins   no stream is cut
    filters.json    keys, issuer, audience              no stream is cut
    clusters.json   who is behind                       no stream is cut
    listeners.json  port, access log, tracing           streams end when the old listener has drained
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weftd.envoy.clusters import admin_cluster, clusters
from weftd.envoy.config import EnvoyConfig
from weftd.envoy.contract import read_services
from weftd.envoy.listener import jwt_filter, listeners
from weftd.envoy.routes import routes

__all__ = ["BOOTSTRAP", "Rendered", "render"]

BOOTSTRAP = "bootstrap.json"
_CONFIG = "type.googleapis.com/envoy.config"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Contents by file name, all of one directory.

    `blobs` are named by their content and must be there before a resource names them. `resources` are in
    the order in which Envoy should take them up. `versions` has the `version_info` of each resource.
    """

    bootstrap: bytes
    blobs: Mapping[str, bytes]
    resources: Mapping[str, bytes]
    versions: Mapping[str, str]


def render(config: EnvoyConfig, jwks: bytes, directory: Path, admin_socket: Path) -> Rendered:
    """Pure. `jwks` is what `keys.read` gives; `directory` (absolute) is where the files will be.

    ValueError says what in `config` cannot be.
    """
    services = read_services(config.descriptors)
    if not services:
        raise ValueError("The descriptor set has no service: run scripts/generate.sh.")
    descriptors_file = f"contract-{_digest(config.descriptors)}.binpb"
    jwks_file = f"jwks-{_digest(jwks)}.json"
    sources = {"rds": _source(directory, "routes.json"), "ecds": _source(directory, "filters.json")}
    resources: dict[str, tuple[str, list[dict[str, Any]]]] = {
        "clusters.json": (
            f"{_CONFIG}.cluster.v3.Cluster",
            [*clusters(config, services), admin_cluster(str(admin_socket))],
        ),
        "routes.json": (
            f"{_CONFIG}.route.v3.RouteConfiguration",
            [routes(config, services, str(directory / descriptors_file))],
        ),
        "filters.json": (
            f"{_CONFIG}.core.v3.TypedExtensionConfig",
            [jwt_filter(config, str(directory / jwks_file))],
        ),
        "listeners.json": (f"{_CONFIG}.listener.v3.Listener", listeners(config, sources)),
    }
    versions = {name: _digest(_json(content)) for name, (_, content) in resources.items()}
    return Rendered(
        bootstrap=_json(_bootstrap(directory, admin_socket)),
        blobs={descriptors_file: config.descriptors, jwks_file: jwks},
        resources={
            name: _json(
                {
                    "version_info": versions[name],
                    "resources": [{"@type": kind, **resource} for resource in content],
                }
            )
            for name, (kind, content) in resources.items()
        },
        versions=versions,
    )


def _bootstrap(directory: Path, admin_socket: Path) -> dict[str, Any]:
    return {
        "node": {"id": "edge", "cluster": "weft"},
        # A socket that only its owner may open: a page in the user's own browser could post to a port.
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "dynamic_resources": {
            "cds_config": _source(directory, "clusters.json"),
            "lds_config": _source(directory, "listeners.json"),
        },
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_MONITOR}.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": 50_000,
                    },
                },
                {
                    "name": _HEAP,
                    "typed_config": {
                        "@type": f"{_MONITOR}.fixed_heap.v3.FixedHeapConfig",
                        "max_heap_size_bytes": _LARGEST_HEAP_BYTES,
                    },
                },
            ],
            "actions": [
                _when_full("envoy.overload_actions.shrink_heap", 0.8),
                # The streams that hold most are reset first.
                _when_full("envoy.overload_actions.reset_high_memory_stream", 0.85, 0.95),
                _when_full("envoy.overload_actions.stop_accepting_requests", 0.95),
            ],
            "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
        },
    }


_MONITOR = "type.googleapis.com/envoy.extensions.resource_monitors"
_HEAP = "envoy.resource_monitors.fixed_heap"
_LARGEST_HEAP_BYTES = 2 << 30


def _when_full(action: str, share: float, until: float | None = None) -> dict[str, Any]:
    trigger: dict[str, Any] = {"threshold": {"value": share}}
    if until is not None:
        trigger = {"scaled": {"scaling_threshold": share, "saturation_threshold": until}}
    return {"name": action, "triggers": [{"name": _HEAP, **trigger}]}


def _source(directory: Path, name: str) -> dict[str, Any]:
    return {
        "path_config_source": {
            "path": str(directory / name),
            "watched_directory": {"path": str(directory)},
        },
        "resource_api_version": "V3",
        "initial_fetch_timeout": "5s",
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]

"""Who is behind the edge: one cluster per service, one for the page, one for the trace collector."""

from __future__ import annotations

from typing import Any

from weftd.envoy.config import Endpoint, EnvoyConfig
from weftd.envoy.contract import Service

__all__ = ["ADMIN", "EDGE", "OTLP", "admin_cluster", "clusters"]

EDGE, OTLP, ADMIN = "edge", "otlp", "admin"

_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {
                "max_concurrent_streams": 1000,
                # A stream whose client reads slowly holds at most this much of the connection's window,
                # and the connection has room for all its streams: no client stops another.
                "initial_stream_window_size": 64 << 10,
                "initial_connection_window_size": 64 << 20,
                "connection_keepalive": {"interval": "30s", "timeout": "10s"},
            }
        },
    }
}


def clusters(config: EnvoyConfig, services: list[Service]) -> list[dict[str, Any]]:
    """ValueError names a service of the contract that has no server."""
    missing = [s.cluster for s in services if not config.services.get(s.cluster)]
    if missing:
        raise ValueError(f"No server is set for {', '.join(missing)}: give an address for each service.")
    made = [_grpc(service, config.services[service.cluster]) for service in services]
    made.append(
        {
            **_cluster(EDGE, config.edge),
            "health_checks": [{**_CHECK, "http_health_check": {"path": "/healthz"}}],
        }
    )
    if config.otlp:
        made.append({**_cluster(OTLP, (config.otlp,)), "typed_extension_protocol_options": _HTTP2})
    return made


def admin_cluster(socket: str) -> dict[str, Any]:
    """Envoy's own admin interface, behind its unix socket: the metrics listener reads it."""
    cluster = _cluster(ADMIN, ())
    cluster["load_assignment"]["endpoints"] = [
        {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket}}}}]}
    ]
    return cluster


_CHECK = {
    "timeout": "1s",
    "interval": "2s",
    "no_traffic_interval": "2s",
    "unhealthy_interval": "0.5s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
}


def _grpc(service: Service, endpoints: tuple[Endpoint, ...]) -> dict[str, Any]:
    return {
        **_cluster(service.cluster, endpoints),
        # In turn, and not to the one with the fewest requests: that is a dead one, for a retry too.
        "lb_policy": "ROUND_ROBIN",
        "typed_extension_protocol_options": _HTTP2,
        "health_checks": [{**_CHECK, "grpc_health_check": {"service_name": service.name}}],
        # Only what the connection itself shows counts: a status that a service chose (a tenant's
        # model is down, say) must not take the server from everyone.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
    }


def _cluster(name: str, endpoints: tuple[Endpoint, ...]) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STATIC" if all(e.is_address for e in endpoints) else "STRICT_DNS",
        "connect_timeout": "1s",
        # By default Envoy's threads hear a second late that a server came back: another may be gone by then.
        "common_lb_config": {"update_merge_window": "0s"},
        # A server that has left the DNS gets no new call, though it still answers its last ones.
        "ignore_health_on_host_removal": True,
        "per_connection_buffer_limit_bytes": 256 << 10,
        # Envoy's defaults stop at 1,024 streams; open ones are many and idle here.
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": 10_000,
                    "max_pending_requests": 50_000,
                    "max_requests": 50_000,
                    "retry_budget": {"budget_percent": {"value": 25}, "min_retry_concurrency": 50},
                }
            ]
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_lb_endpoint(e) for e in endpoints]}],
        },
    }


def _lb_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    address = {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}
    return {"endpoint": {"address": address}}

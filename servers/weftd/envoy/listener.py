"""The port that clients see: its connection manager and the filters that a request passes, in order.

A change here drains the listener and so ends its streams; hence what may change lives in `routes`
(RDS), and the keys in a filter of their own (ECDS).
"""

from __future__ import annotations

from typing import Any

from weftd.envoy.clusters import ADMIN, OTLP
from weftd.envoy.config import Endpoint, EnvoyConfig
from weftd.envoy.replies import local_replies
from weftd.envoy.routes import BUFFER, CORS, JWT, RATE_LIMIT, ROUTES, TRANSCODER
from weftd.rpc.wire import EDGE_KEY

__all__ = ["EDGE_LISTENER", "REQUESTED_TENANT_HEADER", "TENANT_HEADER", "jwt_filter", "listeners"]

EDGE_LISTENER = "edge"
# The tenant of the verified token, and what the client asked for in `X-Tenant-ID`.
TENANT_HEADER = "x-tenant-id"
REQUESTED_TENANT_HEADER = "x-weft-requested-tenant"

_HEADERS_LIMIT = "10s"
_EXTENSION = "type.googleapis.com/envoy.extensions.filters.http"
_MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": f"{_EXTENSION}.router.v3.Router", "suppress_envoy_headers": True},
}


# Headers of which gRPC's server reads the value before any service does, and which no service of ours wants.
# A malformed value makes it refuse that header, whoever sends it, on a connection that all clients share.
_PARSED_BY_GRPC = ".*-bin|grpc-(previous-rpc-attempts|retry-pushback-ms|internal-encoding-request|status)"
# HTTP allows more characters in a header's name than gRPC, which would fail the call as INTERNAL.
_NO_NAME_IN_GRPC = ".*[^a-z0-9_.:-].*"


def listeners(config: EnvoyConfig, xds: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """`xds` gives the config source of "rds" and "ecds"."""
    made = [_listener(EDGE_LISTENER, config.listen, _edge_manager(config, xds))]
    if config.metrics:
        made.append(_listener("metrics", config.metrics, _metrics_manager()))
    return made


def _listener(name: str, address: Endpoint, manager: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "address": {"socket_address": {"address": address.host, "port_value": address.port}},
        # With it a second Envoy on the same port would take half of the connections, unseen.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 256 << 10,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": {"@type": _MANAGER, **manager}}]}],
    }


def _edge_manager(config: EnvoyConfig, xds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    manager = {
        "stat_prefix": "edge",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": 60,
        "common_http_protocol_options": {
            "max_headers_count": 100,
            "idle_timeout": "3600s",
            "max_stream_duration": "3600s",
        },
        "request_headers_timeout": _HEADERS_LIMIT,
        "stream_idle_timeout": "300s",
        "http2_protocol_options": {
            "max_concurrent_streams": 20_000,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 16 << 20,
            "connection_keepalive": {"interval": "30s", "timeout": "10s"},
        },
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # A client's X-Request-ID is its turn's id: kept to the letter (packing would alter a UUID).
        "preserve_external_request_id": True,
        "request_id_extension": {
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
        "access_log": [_access_log(config)],
        "local_reply_config": local_replies(),
        "rds": {"route_config_name": ROUTES, "config_source": xds["rds"]},
        "http_filters": _filters(xds["ecds"]),
    }
    if config.otlp:
        manager["tracing"] = {
            "random_sampling": {"value": 100},
            "spawn_upstream_span": True,
            # No query, which may hold a token.
            "max_path_tag_length": 0,
            "custom_tags": [
                {"tag": "weft.request_id", "request_header": {"name": "x-request-id"}},
                {"tag": "url.path", "value": "%PATH(NQ:ORIG_OR_PATH)%"},
            ],
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
                    "service_name": "weft-edge",
                    "grpc_service": {"envoy_grpc": {"cluster_name": OTLP}, "timeout": "1s"},
                },
            },
        }
    return manager


def _filters(ecds: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        _filter(CORS, "cors.v3.Cors"),
        _filter(
            "envoy.filters.http.header_mutation",
            "header_mutation.v3.HeaderMutation",
            mutations={
                "request_mutations": _request_headers(),
                "response_mutations": [_request_id_in_answer()],
            },
        ),
        _filter("envoy.filters.http.grpc_web", "grpc_web.v3.GrpcWeb"),
        {
            "name": JWT,
            "config_discovery": {
                "config_source": ecds,
                "type_urls": [f"{_EXTENSION}.jwt_authn.v3.JwtAuthentication"],
            },
        },
        # These get their settings from the virtual host and its routes.
        _filter(RATE_LIMIT, "local_ratelimit.v3.LocalRateLimit", stat_prefix="tenants"),
        {**_filter(BUFFER, "buffer.v3.Buffer", max_request_bytes=1), "disabled": True},
        _filter(
            TRANSCODER, "grpc_json_transcoder.v3.GrpcJsonTranscoder", proto_descriptor_bin="", services=[]
        ),
        _filter(
            "envoy.filters.http.grpc_stats",
            "grpc_stats.v3.FilterConfig",
            stats_for_all_methods=True,
            enable_upstream_stats=True,
            replace_dots_in_grpc_service_name=True,
        ),
        _ROUTER,
    ]


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": f"{_EXTENSION}.{kind}", **settings}}


def _request_headers() -> list[dict[str, Any]]:
    """What only the edge may say is taken away from the client, then said."""

    def copied(key: str, source: str) -> dict[str, Any]:
        return {
            "append": {
                "header": {"key": key, "value": f"%REQ({source})%"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        }

    def only_first(key: str) -> dict[str, Any]:
        header = {"key": key, "value": f"%REQ({key})%"}
        return {"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS"}}

    return [
        *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-envoy-", "x-weft-")),
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _PARSED_BY_GRPC}}}},
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": _NO_NAME_IN_GRPC}}}},
        copied(REQUESTED_TENANT_HEADER, TENANT_HEADER),
        copied(EDGE_KEY, "content-type?:method"),
        {"remove": TENANT_HEADER},
        # The first of several values: gRPC reads them as one, which then is malformed.
        *(only_first(key) for key in ("grpc-encoding", "grpc-timeout")),
    ]


def _request_id_in_answer() -> dict[str, Any]:
    """Only where the service gave none: a turn's id may be one of the request's body."""
    return {
        "append": {
            "header": {"key": "x-request-id", "value": "%REQ(x-request-id)%"},
            "append_action": "ADD_IF_ABSENT",
        }
    }


def jwt_filter(config: EnvoyConfig, jwks_file: str) -> dict[str, Any]:
    """The filter that verifies tokens, as an extension that is exchanged when the keys change.

    The token is passed on (services verify it again). No cache of verified tokens: a key that is
    taken away must be gone at once, and verifying is cheap.
    """
    provider = {
        "issuer": config.issuer,
        "audiences": [config.audience],
        "require_expiration": True,
        "clock_skew_seconds": 5,
        "forward": True,
        "local_jwks": {"filename": jwks_file},
        # Named, or Envoy would also take a token from the query.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "claim_to_headers": [{"header_name": TENANT_HEADER, "claim_name": "tenant"}],
    }
    return {
        "name": JWT,
        "typed_config": {
            "@type": f"{_EXTENSION}.jwt_authn.v3.JwtAuthentication",
            "bypass_cors_preflight": True,
            "providers": {"weft": provider},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "weft"}}],
        },
    }


def _access_log(config: EnvoyConfig) -> dict[str, Any]:
    """One JSON object a request. No query (it may hold a token) and no header but the ids."""
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(x-envoy-original-method?:method)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "rpc": "%PATH(NQ:PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "request_id": "%REQ(x-request-id)%",
        "turn_id": "%RESP(x-request-id)%",
        "tenant": f"%REQ({TENANT_HEADER})%",
        "upstream": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "trace": "%TRACE_ID%",
    }
    return {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(config.access_log.absolute()),
            "log_format": {"json_format": fields},
        },
    }


def _metrics_manager() -> dict[str, Any]:
    """Prometheus may read the statistics; the rest of the admin interface stays behind its socket."""
    route = {"match": {"path": "/stats/prometheus"}, "route": {"cluster": ADMIN, "timeout": "10s"}}
    return {
        "stat_prefix": "metrics",
        "route_config": {"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": [route]}]},
        "http_filters": [_ROUTER],
    }

"""Which request goes where, for how long, and what is in force on its way.

Everything here is taken up while streams stay open (RDS), so what may change often lives here: the
contract, limits and origins, as settings of the virtual host for filters that the listener names.
"""

from __future__ import annotations

from typing import Any

from weftd.envoy.clusters import EDGE
from weftd.envoy.config import EnvoyConfig
from weftd.envoy.contract import Service

__all__ = ["BUFFER", "CORS", "JWT", "RATE_LIMIT", "ROUTES", "TRANSCODER", "routes"]

ROUTES = "weft"
BUFFER = "envoy.filters.http.buffer"
CORS = "envoy.filters.http.cors"
JWT = "envoy.filters.http.jwt_authn"
RATE_LIMIT = "envoy.filters.http.local_ratelimit"
TRANSCODER = "envoy.filters.http.grpc_json_transcoder"

_EXTENSION = "type.googleapis.com/envoy.extensions.filters.http"
_OFF = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
_OPEN = dict.fromkeys((JWT, RATE_LIMIT, TRANSCODER), _OFF)
# A socket brings its token in its first message, so no tenant is known here: the limit for all is in force.
_SOCKET = dict.fromkeys((JWT, TRANSCODER), _OFF)

_HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")
_REFLECTION = tuple(
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")
)

_IDLE = "300s"
_UNARY_LIMIT = "30s"
# While a request comes or its answer is taken. Above the limit of the answer itself, which tells more.
_UNARY_IDLE = "35s"


def routes(config: EnvoyConfig, services: list[Service], descriptors_file: str) -> dict[str, Any]:
    """Envoy's `RouteConfiguration`. `descriptors_file` is the path of the contract's descriptor set."""
    settings = {
        RATE_LIMIT: _rate_limit(config),
        TRANSCODER: _transcoder(config, services, descriptors_file),
    }
    if config.allowed_origins:
        settings[CORS] = _cors(config.allowed_origins)
    first = services[0].cluster
    return {
        "name": ROUTES,
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "typed_per_filter_config": settings,
                "routes": [
                    {
                        "match": {"path": "/healthz"},
                        "direct_response": {"status": 200, "body": {"inline_string": "ok\n"}},
                        "typed_per_filter_config": _OPEN,
                    },
                    _malformed_timeout(),
                    *_unknown_compression(),
                    *(_not_grpc(service) for service in services),
                    *(_stream({"path": path}, first, open_to_all=True) for path in _HEALTH),
                    *(_stream({"path": path}, first) for path in _REFLECTION),
                    *(route for service in services for route in _service(service)),
                    _unknown(
                        {"prefix": "/", "headers": [_content_type({"prefix": "application/grpc"})]}, _OPEN
                    ),
                    _unary({"path": "/api/v1/dev/token"}, EDGE, retry=True, open_to_all=True),
                    {**_stream({"path": "/api/v1/chat/ws"}, EDGE), "typed_per_filter_config": _SOCKET},
                    # Transcoded first, then routed again by its gRPC path; what the contract does not know is
                    # a 404 of the transcoder. A real route, because a direct response ignores CORS.
                    *(_stream({"path": path}, first) for service in services for path in service.uploads),
                    {
                        **_unary({"prefix": "/api/"}, first),
                        "typed_per_filter_config": {BUFFER: _buffer(config)},
                    },
                    _unary({"prefix": "/"}, EDGE, retry=True, open_to_all=True),
                ],
            }
        ],
    }


def _service(service: Service) -> list[dict[str, Any]]:
    """A route for each method: what a client invents reaches no service and makes no statistics."""
    methods = [
        _stream({"path": f"/{service.name}/{name}"}, service.cluster)
        if name in service.streams
        else _unary({"path": f"/{service.name}/{name}"}, service.cluster, retry=name in service.reads)
        for name in service.methods
    ]
    # gRPC would break the call off, as if the service had died.
    verb = {
        "name": ":method",
        "string_match": {"safe_regex": {"regex": "POST|OPTIONS"}},
        "invert_match": True,
    }
    other = _unknown({"prefix": f"/{service.name}/", "headers": [verb]}, {TRANSCODER: _OFF})
    return [other, *methods]


def _unknown(match: dict[str, Any], filters: dict[str, Any]) -> dict[str, Any]:
    return {"match": match, "direct_response": {"status": 404}, "typed_per_filter_config": filters}


def _malformed_timeout() -> dict[str, Any]:
    """gRPC itself would answer with INTERNAL, before any service sees the call."""
    # All that is no "[0-9]{1,8}[HMSmun]". An inverted match would let several values through if one is good.
    other = "|[^0-9].*|[0-9]{1,8}([^0-9HMSmun].*)?|[0-9]{9}.*|[0-9]{1,8}[HMSmun].+"
    header = {"name": "grpc-timeout", "string_match": {"safe_regex": {"regex": other}}}
    said = "grpc-timeout is up to 8 digits and one of H, M, S, m, u, n: 30S."
    return {
        "match": {"prefix": "/", "headers": [header]},
        "direct_response": {"status": 400, "body": {"inline_string": said}},
    }


def _unknown_compression() -> list[dict[str, Any]]:
    """Refused here, for one that gRPC cannot read spoils the header for everyone: see `listener`.

    An inverted match would let it through beside a good one. Envoy takes short expressions only.
    """
    known = ("deflate", "gzip", "identity")
    others = [f"|[^{''.join(word[0] for word in known)}].*", *(_begun_otherwise(word) for word in known)]
    return [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": "grpc-encoding", "string_match": {"safe_regex": {"regex": other}}}],
            },
            "direct_response": {"status": 501},
        }
        for other in others
    ]


def _begun_otherwise(word: str) -> str:
    """What begins with the word's first letter and is not the word; RE2 has no shorter way to say it."""
    other = ".+"
    for letter in reversed(word[1:]):
        other = f"|[^{letter}].*|{letter}(?:{other})"
    return f"{word[0]}(?:{other})"


def _not_grpc(service: Service) -> dict[str, Any]:
    """A call whose body is neither gRPC nor gRPC-Web, or in another format than protobuf's."""
    post = {"name": ":method", "string_match": {"exact": "POST"}}
    protobuf = {"safe_regex": {"regex": r"application/grpc(-web(-text)?)?(\+proto)?\s*(;.*)?"}}
    other = {**_content_type(protobuf), "invert_match": True, "treat_missing_header_as_empty": True}
    return {
        "match": {"prefix": f"/{service.name}/", "headers": [post, other]},
        "direct_response": {"status": 415},
        "typed_per_filter_config": {TRANSCODER: _OFF},
    }


def _content_type(match: dict[str, Any]) -> dict[str, Any]:
    return {"name": "content-type", "string_match": match}


def _stream(match: dict[str, Any], cluster: str, *, open_to_all: bool = False) -> dict[str, Any]:
    """`grpc-timeout` is passed on and kept by the service, which tells a passed deadline from a lost client.

    The listener limits how long a stream may last: a limit of the route would overwrite `grpc-timeout`.
    """
    route = {"cluster": cluster, "timeout": "0s", "idle_timeout": _IDLE}
    return {"match": match, "route": route, **({"typed_per_filter_config": _OPEN} if open_to_all else {})}


def _unary(
    match: dict[str, Any], cluster: str, *, retry: bool = False, open_to_all: bool = False
) -> dict[str, Any]:
    route: dict[str, Any] = {"cluster": cluster, "timeout": _UNARY_LIMIT, "idle_timeout": _UNARY_IDLE}
    other_host = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    if retry:
        route["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset,unavailable,cancelled",
            "num_retries": 3,
            "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.5s"},
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": f"type.googleapis.com/{other_host}"},
                }
            ],
            # Other calls take turns too, so that the next one may be the same again.
            "host_selection_retry_max_attempts": 20,
        }
    return {"match": match, "route": route, **({"typed_per_filter_config": _OPEN} if open_to_all else {})}


def _transcoder(config: EnvoyConfig, services: list[Service], descriptors_file: str) -> dict[str, Any]:
    return {
        "@type": f"{_EXTENSION}.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": descriptors_file,
        "services": [service.name for service in services],
        "convert_grpc_status": True,
        # An answer is printed as a whole; the default is what the connection may buffer.
        "max_response_body_size": 32 << 20,
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "print_options": {"preserve_proto_field_names": True, "stream_sse_style_delimited": True},
    }


def _rate_limit(config: EnvoyConfig) -> dict[str, Any]:
    descriptors = [
        {"entries": [{"key": "tenant", "value": tenant}], "token_bucket": _per_minute(limit)}
        for tenant, limit in sorted(config.tenant_requests_per_minute.items())
    ]
    # An entry without a value: a bucket of its own for each tenant that comes.
    descriptors.append(
        {"entries": [{"key": "tenant"}], "token_bucket": _per_minute(config.requests_per_minute)}
    )
    return {
        "@type": f"{_EXTENSION}.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "tenants",
        # For a token that names no tenant: the service refuses it, so this need not be tight.
        "token_bucket": _per_minute(100_000),
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
        "rate_limited_as_resource_exhausted": True,
        "enable_retry_after_header": True,
        "always_consume_default_token_bucket": False,
        "max_dynamic_descriptors": 10_000,
        "rate_limits": [
            {"actions": [{"request_headers": {"header_name": "x-tenant-id", "descriptor_key": "tenant"}}]}
        ],
        "descriptors": descriptors,
    }


def _buffer(config: EnvoyConfig) -> dict[str, Any]:
    """A JSON body is held until it is whole; a larger one is refused before the service sees it."""
    return {
        "@type": f"{_EXTENSION}.buffer.v3.BufferPerRoute",
        "buffer": {"max_request_bytes": config.body_limit_bytes},
    }


def _per_minute(limit: int) -> dict[str, Any]:
    return {"max_tokens": limit, "tokens_per_fill": limit, "fill_interval": "60s"}


def _cors(origins: tuple[str, ...]) -> dict[str, Any]:
    return {
        "@type": f"{_EXTENSION}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "GET, POST, PUT, DELETE, OPTIONS",
        "allow_headers": "authorization, content-type, grpc-timeout, traceparent, x-grpc-web, x-request-id, "
        "x-tenant-id, x-user-agent",
        "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, x-request-id, retry-after",
        "max_age": "600",
        "forward_not_matching_preflights": False,
    }

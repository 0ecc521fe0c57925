"""The edge's own refusals, in the shape of the services': a status, a reason, what to do next.

Envoy answers some calls by itself: no valid token, too many requests, nobody behind. Over REST they
look as the transcoder prints a status; over gRPC and gRPC-Web they carry the same status with details.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from weft.v1.error_reason_pb2 import ErrorReason
from weftd.rpc.wire import EDGE_KEY

__all__ = ["local_replies"]


@dataclass(frozen=True, slots=True)
class _Reply:
    """`status` is what Envoy would send, `sent` what goes out."""

    status: int
    sent: int
    code: int
    reason: str
    message: str
    retry_after_s: float | None = None


def _replies() -> list[_Reply]:
    """Messages are ASCII without a percent sign: they are header values and Envoy's format strings."""
    token = (
        "The token is missing, malformed, expired or not meant for this system. "
        "Send a valid one as 'Authorization: Bearer TOKEN'."
    )
    silent = "The service behind the edge does not answer. Try again in a moment."
    too_long = "The request is too large. Send less at once; files go through /api/v1/knowledge/upload."
    unknown = "There is no such call. See the API's documentation for paths and methods."
    headers = "The headers are too large. Send fewer or shorter ones."
    protobuf = "This path takes gRPC and gRPC-Web with protobuf messages. JSON goes to /api/v1."
    compression = "The compression of the messages is unknown. Use gzip or deflate, or leave it."
    late = "The time for this call is up. Ask again with more time."
    return [
        _Reply(401, 401, Code.UNAUTHENTICATED, "TOKEN_INVALID", token),
        _Reply(403, 401, Code.UNAUTHENTICATED, "TOKEN_INVALID", token),  # Envoy's word for a wrong audience
        _Reply(404, 404, Code.UNIMPLEMENTED, "", unknown),
        _Reply(408, 408, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", late),
        _Reply(413, 413, Code.INVALID_ARGUMENT, "INVALID_FIELD", too_long),
        _Reply(415, 415, Code.UNIMPLEMENTED, "", protobuf),
        _Reply(429, 429, Code.RESOURCE_EXHAUSTED, "OVERLOADED",
               "This tenant has sent too many requests. Wait, then send fewer a minute.", 1),
        _Reply(431, 431, Code.INVALID_ARGUMENT, "INVALID_FIELD", headers),
        _Reply(500, 500, Code.INTERNAL, "INTERNAL", "A fault at the edge; its log has the request id."),
        _Reply(501, 501, Code.UNIMPLEMENTED, "", compression),
        _Reply(502, 503, Code.UNAVAILABLE, "BACKEND_UNAVAILABLE", silent, 1),
        _Reply(503, 503, Code.UNAVAILABLE, "BACKEND_UNAVAILABLE", silent, 1),
        _Reply(504, 504, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", late),
    ]  # fmt: skip


def local_replies() -> dict[str, Any]:
    """Envoy's `LocalReplyConfig`."""
    mappers = [mapper for reply in _replies() for mapper in (*_over_grpc(reply), _over_rest(reply))]
    # Envoy would make it INTERNAL. Which header it was, it can tell to REST only.
    malformed = "The request is malformed. grpc-timeout is up to 8 digits and one of H, M, S, m, u, n: 30S."
    mappers += _over_grpc(_Reply(400, 400, Code.INVALID_ARGUMENT, "INVALID_FIELD", malformed))
    # What is left is mostly a body that is no JSON: Envoy's own words say where. They may quote it, and
    # cannot be cut: a large request is answered without them.
    where = "The body is no JSON, or a value has another type. Send a shorter one to learn which."
    mappers.append(_malformed({"and_filter": {"filters": [_at_least(400), _LARGE]}}, where))
    mappers.append(_malformed(_at_least(400), "%LOCAL_REPLY_BODY%"))
    return {"mappers": mappers}


_LARGE = {
    "extension_filter": {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": "request.total_size > 4096",
        },
    }
}


def _malformed(when: dict[str, Any], where: str) -> dict[str, Any]:
    body = {
        "code": int(Code.INVALID_ARGUMENT),
        "message": f"The request is malformed. {where}",
        "details": [],
    }
    return {"filter": when, "body_format_override": {"json_format": body}}


def _over_grpc(reply: _Reply) -> list[dict[str, Any]]:
    headers = {
        "grpc-status": str(reply.code),
        "grpc-message": reply.message,
        "grpc-status-details-bin": base64.b64encode(_status(reply).SerializeToString()).decode().rstrip("="),
    }
    return [
        {
            "filter": _when(reply.status, "application/grpc-web"),
            "status_code": 200,
            "headers_to_add": [_header(k, v) for k, v in headers.items()],
            "body_format_override": {"text_format_source": {"inline_string": ""}},
        },
        {
            "filter": _when(reply.status, "application/grpc"),
            "headers_to_add": [_header(k, v) for k, v in headers.items() if k != "grpc-message"],
            "body_format_override": {"text_format_source": {"inline_string": reply.message}},
        },
    ]


def _over_rest(reply: _Reply) -> dict[str, Any]:
    body = MessageToDict(_status(reply), preserving_proto_field_name=True)
    return {
        "filter": _when(reply.status),
        "status_code": reply.sent,
        "body_format_override": {"json_format": body},
    }


def _status(reply: _Reply) -> Status:
    details = []
    if reply.reason:
        ErrorReason.Value(f"ERROR_REASON_{reply.reason}")  # fails where the contract has no such reason
        details.append(_packed(ErrorInfo(reason=reply.reason, domain="weft")))
    if reply.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(reply.retry_after_s * 1000))
        details.append(_packed(RetryInfo(retry_delay=delay)))
    return Status(code=reply.code, message=reply.message, details=details)


def _packed(message: ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _header(key: str, value: str) -> dict[str, Any]:
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _when(status: int, wire: str | None = None) -> dict[str, Any]:
    equal = _comparison("EQ", status)
    if wire is None:
        return equal
    header = {"header_filter": {"header": {"name": EDGE_KEY, "string_match": {"prefix": wire}}}}
    return {"and_filter": {"filters": [equal, header]}}


def _at_least(status: int) -> dict[str, Any]:
    return _comparison("GE", status)


def _comparison(op: str, status: int) -> dict[str, Any]:
    return {
        "status_code_filter": {
            "comparison": {
                "op": op,
                "value": {"default_value": status, "runtime_key": f"weft.reply_{status}"},
            }
        }
    }

"""What a hostile client may send: drawn by hypothesis, derived from the contract's descriptors.

Each surface is a strategy of inputs; `bench.fuzz_wire` sends them. An input is near to a good one, with
something wrong in it, so that it comes as far into the mesh as it can.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_from_bytes

from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from bench.fuzz_values import (
    IDS,
    as_json,
    bodies,
    fields_of,
    garbled,
    garbling,
    junk,
    numbers,
    often_garbled,
    rarely,
    texts,
)
from tests import documents
from weft.v1 import chat_pb2, knowledge_pb2, models_pb2, retrieval_pb2

__all__ = ["FILES", "SURFACES", "Frames", "HttpRequest", "RpcCall"]

METHODS: list[MethodDescriptor] = [
    method
    for file in (chat_pb2, knowledge_pb2, models_pb2, retrieval_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The bytes of an HTTP/1.1 request; `TOKEN` in them stands for a good token. `is_whole`: it is HTTP,
    and so must be answered."""

    raw: bytes
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames that follow a WebSocket's handshake: (first byte, payload)."""

    frames: tuple[tuple[int, bytes], ...]
    header_token: bool


@dataclass(frozen=True, slots=True)
class RpcCall:
    """Messages of a gRPC call as they go over the wire."""

    path: str
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...]


# HTTP.


def _http(verb: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [verb.encode() + b" " + target + b" HTTP/1.1", *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _request(
    verb: str, target: bytes, body: bytes = b"", more: tuple[tuple[bytes, bytes], ...] = ()
) -> HttpRequest:
    given = {name.lower() for name, _ in more}
    usual = [
        (b"host", b"127.0.0.1"),
        (b"connection", b"close"),
        (b"authorization", b"Bearer TOKEN"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return HttpRequest(_http(verb, target, [pair for pair in usual if pair[0] not in given] + [*more], body))


def _rest_paths() -> list[tuple[str, str, Descriptor]]:
    found = []
    for method in METHODS:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        if verb is not None:
            found.append((verb.upper(), getattr(rule, verb), method.input_type))
    return found


REST = _rest_paths()
_segments = st.one_of(
    st.sampled_from(IDS).map(quote),
    texts.filter(lambda text: len(text) < 5000).map(
        lambda text: quote(text, safe="", errors="surrogatepass")
    ),
    st.binary(max_size=20).map(quote_from_bytes),
    st.sampled_from(("", "%", "%zz", "%2e%2e", "%2F", "%5c", "..", ".", ";a=b", "a" * 20_000)),
)


def _filled(template: str, segments: list[str]) -> str:
    parts = template.split("/")
    at = 0
    for number, part in enumerate(parts):
        if part.startswith("{"):
            parts[number] = segments[at % len(segments)]
            at += 1
    return "/".join(parts)


def _rest(route: tuple[str, str, Descriptor]) -> st.SearchStrategy[HttpRequest]:
    verb, template, message = route
    body = bodies(message) if verb == "POST" else rarely(bodies(message), st.just(b""))
    return st.builds(
        lambda body, segments: _request(verb, _filled(template, segments).encode(), body),
        body,
        st.lists(st.sampled_from(IDS), min_size=2, max_size=2),
    )


rest = st.sampled_from([route for route in REST if "upload" not in route[1]]).flatmap(_rest)


def _path(route: tuple[str, str, Descriptor]) -> st.SearchStrategy[HttpRequest]:
    verb, template, message = route
    names = st.sampled_from([field.name for field in message.fields] or ["x"]) | st.text(max_size=6).map(
        lambda name: quote(name, errors="surrogatepass")
    )
    values = _segments | numbers.map(str) | st.just("true")
    queries = st.lists(st.tuples(names, values), max_size=4).map(
        lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
    )
    verbs = rarely(
        st.sampled_from(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW")),
        st.just(verb),
    )
    return st.builds(
        lambda verb, segments, query, extra: _request(
            verb, f"{_filled(template, segments)}{extra}{'?' if query else ''}{query}".encode()
        ),
        verbs,
        st.lists(_segments, min_size=2, max_size=2),
        queries,
        rarely(_segments.map(lambda each: f"/{each}"), st.just("")),
    )


paths = st.sampled_from(REST).flatmap(_path)

_header_values = st.one_of(
    st.sampled_from((b"", b" ", b"Bearer", b"Bearer ", b"Bearer TOKEN", b"Bearer TOKENx", b"bearer a.b.c")),
    st.sampled_from((b"x" * 9000, b"x" * 70_000, b"\xff\xfe", b"acme", b"other", b"1S", b"0n", b"99999999H")),
    st.sampled_from(
        (b"chunked", b"identity, chunked", b"gzip", b"websocket", b"application/grpc", b"-1", b"5")
    ),
    st.sampled_from((b"application/grpc-web+proto", b"application/grpc-web-text", b"multipart/form-data")),
    st.sampled_from(
        (b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-zz", b"null", b"http://evil.example")
    ),
    st.binary(max_size=40).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
)
_header_names = st.one_of(
    st.sampled_from(
        (
            *(
                b"authorization",
                b"x-request-id",
                b"x-tenant-id",
                b"content-type",
                b"grpc-timeout",
                b"traceparent",
            ),
            *(
                b"content-length",
                b"transfer-encoding",
                b"content-encoding",
                b"expect",
                b"upgrade",
                b"host",
                b"te",
            ),
            *(
                b"origin",
                b"x-weft-wire",
                b"x-weft-requested-tenant",
                b"x-envoy-original-path",
                b"accept-encoding",
            ),
            *(
                b"x-forwarded-for",
                b"grpc-encoding",
                b"x-grpc-web",
                b"cookie",
                b"range",
                b"baggage",
                b"tracestate",
            ),
        )
    ),
    st.text("abcdefghij-_XYZ", min_size=1, max_size=10).map(str.encode),
    rarely(st.binary(max_size=6), st.just(b"x-many")),
)


def _with_headers(
    route: tuple[str, str, Descriptor],
    more: list[tuple[bytes, bytes]],
    fields: Any,
    how: tuple[str, int, bytes],
) -> HttpRequest:
    verb, template, _ = route
    body = as_json(fields) if verb == "POST" else b""
    request = _request(verb, _filled(template, ["c-1", "doc_1"]).encode(), body, tuple(more))
    # Whoever writes the length of the body or how it is coded by hand may be cut off without a word.
    return HttpRequest(garbled(request.raw, how), is_whole=False)


headers = st.builds(
    _with_headers,
    st.sampled_from(REST),
    st.lists(st.tuples(_header_names, _header_values), min_size=1, max_size=5)
    | st.integers(90, 300).map(lambda count: [(b"x-many-%d" % n, b"1") for n in range(count)]),
    st.just({"query": "x"}),
    garbling,
)

# Uploads.

_OUTLINE = [documents.Part("Notice", ["Either party may end this contract.", "租期为一年。"])] * 2
FILES: dict[str, bytes] = {
    "a.pdf": documents.pdf(_OUTLINE),
    "b.pdf": documents.encrypted_pdf(_OUTLINE),
    "c.docx": documents.word(_OUTLINE),
    "d.pptx": documents.powerpoint(_OUTLINE),
    "e.xlsx": documents.workbook(_OUTLINE),
    "f.html": documents.html(_OUTLINE),
    "g.md": documents.markdown(_OUTLINE),
    "h.txt": documents.plain(_OUTLINE, "utf-16"),
    "i.csv": documents.csv_table(_OUTLINE, "gb18030"),
}
_names = (
    st.sampled_from(tuple(FILES))
    | st.sampled_from(("a", ".pdf", "a.exe", "x" * 300 + ".md"))
    | texts.map(lambda name: name[:2000])
)
_contents = st.builds(garbled, st.sampled_from(tuple(FILES.values())), often_garbled)
_dispositions = st.builds(
    lambda field, name: (
        b'form-data; name="%s"' % field
        + (b'; filename="%s"' % name.encode(errors="surrogatepass").replace(b'"', b"%22").replace(b"\n", b""))
    ),
    st.sampled_from((b"file", b"file", b"file", b"dataset_id", b"", b"other")),
    _names,
) | st.sampled_from(
    (b'form-data; name="dataset_id"', b"form-data", b"", b"attachment; filename*=UTF-8''%ff", b"x" * 20_000)
)
_parts = st.tuples(_dispositions, _contents | st.sampled_from((b"ds-1", b"ds-2", b".", b"x" * 2000, b"\xff")))


def _form(
    parts: list[tuple[bytes, bytes]], boundary: bytes, how: tuple[str, int, bytes], declared: bytes
) -> HttpRequest:
    body = b"".join(
        b"--%s\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (boundary, disposition, content)
        for disposition, content in parts
    )
    body = garbled(body + b"--%s--\r\n" % boundary, how)
    return _request("POST", b"/api/v1/knowledge/upload", body, ((b"content-type", declared),))


forms = st.builds(
    _form,
    st.lists(_parts, max_size=4),
    st.just(b"edge"),
    garbling,
    rarely(
        st.sampled_from((b"multipart/form-data", b"multipart/form-data; boundary=", b"text/plain", b"")),
        st.just(b"multipart/form-data; boundary=edge"),
    ),
)

# WebSocket.

_kinds = {
    "turn": chat_pb2.StreamChatRequest.DESCRIPTOR,
    "interrupt": chat_pb2.CancelTurnRequest.DESCRIPTOR,
    "ack": chat_pb2.Acknowledgement.DESCRIPTOR,
    "resume": chat_pb2.ResumeChatRequest.DESCRIPTOR,
}
_said = st.one_of(
    st.sampled_from(tuple(_kinds)).flatmap(
        lambda kind: fields_of(_kinds[kind]).map(lambda fields: {**fields, "type": kind})
    ),
    st.sampled_from(({"type": "start", "token": "TOKEN"}, {"type": "ping"}, {"type": "end"}, {"type": "go"})),
    junk,
)
_payloads = st.builds(lambda said, how: garbled(as_json(said), how), _said, garbling)
_TEXT, _BINARY, _MORE, _CLOSE, _PING, _PONG = 0x81, 0x82, 0x80, 0x88, 0x89, 0x8A
_frames = st.one_of(
    _payloads.map(lambda data: [(_TEXT, data)]),
    _payloads.map(lambda data: [(_TEXT, data)]),
    # In fragments, with a ping between them.
    st.builds(
        lambda data, at: [(_TEXT & 0x7F, data[:at]), (_PING, b"x"), (_MORE, data[at:])],
        _payloads,
        st.integers(0, 50),
    ),
    _payloads.map(lambda data: [(_BINARY, data)]),
    st.lists(
        st.tuples(
            st.integers(0, 255) | st.sampled_from((_CLOSE, _PING, _PONG, _MORE)), st.binary(max_size=130)
        ),
        max_size=3,
    ),
)
sockets = st.builds(
    lambda start, groups, in_header: Frames(
        (*([(_TEXT, as_json(start))] if start else []), *(frame for group in groups for frame in group)),
        in_header,
    ),
    rarely(_said, st.just({"type": "start", "token": "TOKEN"})),
    st.lists(_frames, max_size=5),
    rarely(st.just(True), st.just(False)),
)

# gRPC.


def _message(message: Descriptor) -> st.SearchStrategy[bytes]:
    def serialised(fields: dict[str, Any], how: tuple[str, int, bytes]) -> bytes:
        try:
            good = ParseDict(fields, GetMessageClass(message)(), ignore_unknown_fields=True)
            return garbled(good.SerializeToString(), how)
        except (ParseError, ValueError, TypeError, RecursionError, OverflowError, SystemError):
            return b""

    return st.builds(serialised, fields_of(message), often_garbled) | st.binary(max_size=60)


_metadata = st.lists(
    st.tuples(
        st.sampled_from(("x-request-id", "x-tenant-id", "traceparent", "x-odd", "authorization")),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30) | st.just("a" * 9000),
    )
    | st.tuples(st.sampled_from(("x-odd-bin", "grpc-status-details-bin")), st.binary(max_size=30)),
    max_size=2,
)


def _call(method: MethodDescriptor) -> st.SearchStrategy[RpcCall]:
    most = 4 if method.client_streaming else 1
    return st.builds(
        lambda messages, metadata: RpcCall(
            f"/{method.containing_service.full_name}/{method.name}", tuple(messages), tuple(metadata)
        ),
        st.lists(_message(method.input_type), min_size=most // 4 or 1, max_size=most),
        rarely(_metadata, st.just([])),
    )


rpcs = st.sampled_from(METHODS).flatmap(_call)


def _web(call: RpcCall, how: tuple[str, int, bytes], kind: int, as_text: bool) -> HttpRequest:
    body = garbled(struct.pack(">BI", kind, len(call.messages[0])) + call.messages[0], how)
    declared = b"application/grpc-web-text+proto" if as_text else b"application/grpc-web+proto"
    body = base64.b64encode(body) if as_text else body
    # Its end may be within a frame: gRPC then waits for the rest, and ends with the connection.
    return HttpRequest(_request("POST", call.path.encode(), body, ((b"content-type", declared),)).raw, False)


webs = st.builds(_web, rpcs, garbling, st.sampled_from((0, 0, 0, 0, 1, 0x80, 0xFF)), st.booleans())

SURFACES: dict[str, tuple[float, st.SearchStrategy[Any]]] = {
    "REST bodies": (0.30, rest),
    "paths and queries": (0.15, paths),
    "headers": (0.15, headers),
    "forms": (0.10, forms),
    "WebSocket": (0.10, sockets),
    "gRPC": (0.12, rpcs),
    "gRPC-Web": (0.08, webs),
}
"""By name: the share of all inputs, and the inputs."""

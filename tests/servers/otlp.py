"""An OTLP collector on free ports of this machine, on threads of its own, that keeps what it gets."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Span:
    """One span; ids in hex, `parent_id` empty for a root. `text` is all that it says."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]
    text: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """`endpoint` takes spans over gRPC, `http_endpoint` as JSON over HTTP, as Triton sends them."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.http_endpoint = ""
        self._spans: list[Span] = []
        self._came = threading.Condition()

    @property
    def spans(self) -> list[Span]:
        with self._came:
            return list(self._spans)

    def wait_for(
        self, trace_id: str, done: Callable[[list[Span]], bool], timeout_s: float = 40
    ) -> list[Span]:
        """The spans of a trace once `done` says that they are all there. AssertionError after the time."""

        def mine() -> list[Span]:
            return [span for span in self._spans if span.trace_id == trace_id]

        with self._came:
            there = self._came.wait_for(lambda: done(mine()), timeout_s)
            assert there, [(span.service, span.name) for span in mine()]
            return mine()

    def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._came:
            for resource in request.resource_spans:
                service = _attributes(resource.resource)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_span(service, each) for each in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def take_json(self, request: Any) -> None:
        with self._came:
            for resource in request["resourceSpans"]:
                service = _json_attributes(resource["resource"])["service.name"]
                for scope in resource["scopeSpans"]:
                    self._spans += [_json_span(service, each) for each in scope["spans"]]
            self._came.notify_all()


def _json_span(service: str, span: Any) -> Span:
    ids = (span["traceId"], span["spanId"], span.get("parentSpanId", ""))
    return Span(service, span["name"], *ids, _json_attributes(span), json.dumps(span))


def _json_attributes(owner: Any) -> dict[str, str]:
    return {each["key"]: str(*each["value"].values()) for each in owner.get("attributes", ())}


def _span(service: str, span: Any) -> Span:
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Span(service, span.name, *ids, _attributes(span), str(span))


def _attributes(owner: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in owner.attributes}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take_json(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.http_endpoint = f"http://127.0.0.1:{web.server_port}/v1/traces"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield collector
    finally:
        web.shutdown()
        web.server_close()
        server.stop(None).wait()

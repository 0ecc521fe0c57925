"""OpenTelemetry spans of calls. The library is imported only where an endpoint is set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class CallSpan(Protocol):
    """The span of one call."""

    @property
    def traceparent(self) -> str:
        """W3C traceparent to hand on."""

    def end(self, code: str) -> None:
        """Ends the span with the call's status code, as in "NOT_FOUND"."""


StartSpan = Callable[[str, str, str], CallSpan]
"""Starts a span: full method name, the caller's traceparent or "", the request id."""


def start_tracing(endpoint: str, service_name: str) -> tuple[StartSpan, Callable[[], None]]:
    """Exports spans to an OTLP endpoint, "http://host:4317"; returns how to start one, and how to stop.

    Stopping sends what is left. A thread of the exporter sends: a collector that does not answer
    costs no call anything.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("weftd")
    propagator = TraceContextTextMapPropagator()

    class Span:
        __slots__ = ("_span", "traceparent")

        def __init__(self, method: str, traceparent: str, request_id: str) -> None:
            parent = propagator.extract({"traceparent": traceparent})
            service, _, name = method.strip("/").partition("/")
            self._span = tracer.start_span(
                method.strip("/"),
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes={
                    "rpc.system": "grpc",
                    "rpc.service": service,
                    "rpc.method": name,
                    "weft.request_id": request_id,
                },
            )
            carrier: dict[str, str] = {}
            propagator.inject(carrier, context=trace.set_span_in_context(self._span))
            self.traceparent = carrier.get("traceparent", traceparent)

        def end(self, code: str) -> None:
            self._span.set_attribute("rpc.grpc.status", code)
            if code in ("INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED"):
                self._span.set_status(trace.StatusCode.ERROR, code)
            self._span.end()

    return Span, provider.shutdown

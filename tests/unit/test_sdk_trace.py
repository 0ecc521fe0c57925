"""The trace that the SDK puts its calls into."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from weft.trace import traceparent


def test_a_call_is_a_trace_of_its_own_named_by_its_request_id() -> None:
    version, trace_id, span_id, flags = traceparent("4bf92f3577b34da6a3ce929d0e0e4736").split("-")
    assert (version, trace_id, flags) == ("00", "4bf92f3577b34da6a3ce929d0e0e4736", "01")
    assert len(span_id) == 16


@pytest.mark.parametrize("request_id", ["", "turn-1", "0" * 32, "F" * 32, "a" * 33])
def test_a_request_id_of_another_form_names_no_trace(request_id: str) -> None:
    _, trace_id, span_id, _ = traceparent(request_id).split("-")
    assert len(bytes.fromhex(trace_id)) == 16
    assert len(bytes.fromhex(span_id)) == 8
    assert trace_id not in ("0" * 32, request_id)


def test_a_span_of_the_program_is_gone_on_with() -> None:
    tracer = TracerProvider().get_tracer("program")
    with tracer.start_as_current_span("asks") as span:
        context = span.get_span_context()
        assert traceparent("r-1") == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=True))):
        assert traceparent("r-1") == f"00-{1:032x}-{2:016x}-00"

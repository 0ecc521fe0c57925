"""What operators see: JSON logs without secrets, and spans that a real collector takes."""

from __future__ import annotations

import asyncio
import contextvars
import json
import time
from typing import Any

import grpc
import pytest
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import generate_latest

from weftd.rpc import caller, gauges, telemetry
from weftd.rpc.loop_lag import watch_loop
from weftd.rpc.tracing import start_tracing


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [(resource.resource, span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_spans_go_on_from_the_callers() -> None:
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    start_span, stop = start_tracing(f"http://127.0.0.1:{port}", "weft-chat")
    trace_id, parent_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    span = start_span("/weft.v1.ChatService/StreamChat", f"00-{trace_id}-{parent_id}-01", "r-1")
    version, handed_on, own_id, _flags = span.traceparent.split("-")
    assert (version, handed_on) == ("00", trace_id)
    assert own_id != parent_id
    span.end("UNAVAILABLE")
    fresh = start_span("/weft.v1.ChatService/StreamChat", "not a traceparent", "r-2")
    assert fresh.traceparent.split("-")[1] not in (trace_id, "0" * 32)
    fresh.end("OK")
    async with asyncio.timeout(20):
        await asyncio.to_thread(stop)
    await server.stop(None)
    (resource, exported), (_, other) = collector.spans
    assert any(item.value.string_value == "weft-chat" for item in resource.attributes)
    assert exported.name == "weft.v1.ChatService/StreamChat"
    assert exported.parent_span_id.hex() == parent_id
    assert exported.span_id.hex() == own_id
    attributes = {item.key: item.value.string_value for item in exported.attributes}
    assert attributes["weft.request_id"] == "r-1"
    assert exported.status.code == 2
    assert other.status.code == 0


def test_log_lines_are_json_with_caller_and_without_token(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    try:
        telemetry.configure_logging("info", service="chat")
        contextvars.copy_context().run(write_lines)
    finally:
        structlog.configure(**before)
    written = capsys.readouterr().err
    ended, failed = (json.loads(line) for line in written.splitlines())
    assert ended.pop("timestamp").endswith("Z")
    assert ended == {
        "event": "turn ended",
        "events": 7,
        "level": "info",
        "request_id": "r-1",
        "tenant": "acme",
        "service": "chat",
    }
    assert failed["error"] == "ValueError"
    assert "test_rpc_telemetry.py" in failed["trace"][-1]
    assert "what the user said" not in written
    assert "SECRET" not in written


def write_lines() -> None:
    caller.enter(
        caller.Caller(
            tenant="acme",
            subject="u1",
            roles=frozenset(),
            request_id="r-1",
            token="SECRET-TOKEN",
            token_expires_at=time.time(),
        )
    )
    log = structlog.get_logger()
    log.debug("not shown")
    log.info("turn ended", events=7)
    try:
        raise ValueError("what the user said")
    except ValueError as error:
        log.error("call failed", **telemetry.describe(error))


def shown(text: str, name: str) -> float:
    """The value of a series in what `/metrics` gives."""
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))


async def test_a_held_event_loop_shows_in_the_metrics() -> None:
    def late() -> float:
        text = generate_latest().decode()
        return shown(text, "weft_loop_lag_seconds_count") - shown(
            text, 'weft_loop_lag_seconds_bucket{le="0.25"}'
        )

    before = late()
    stop = watch_loop()
    try:
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)  # what nobody may do
        async with asyncio.timeout(10):
            while late() == before:
                await asyncio.sleep(0.05)
    finally:
        stop()


def test_gauges_are_read_when_someone_asks() -> None:
    queue = [1, 2, 3]
    gauges.show_waiting("of_a_test", lambda: len(queue))
    assert shown(generate_latest().decode(), 'weft_queue_waiting{queue="of_a_test"}') == 3
    queue.pop()
    assert shown(generate_latest().decode(), 'weft_queue_waiting{queue="of_a_test"}') == 2

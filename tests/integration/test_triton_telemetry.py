"""What can be seen of Triton: its spans in the caller's trace, its metrics beside Weft's."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import httpx

from tests.servers.mesh import free_port, running_mesh
from tests.servers.otlp import Span, collecting
from tests.servers.triton import need_triton

_GENERATE = "weft.v1.ModelService/Generate"
_ASKED = {
    "model_id": "extractive",
    "messages": [{"role": "user", "content": "When does the shuttle leave?"}],
    "passages": [{"id": 1, "content": "The shuttle leaves at six. It comes back at nine."}],
    "grounded": True,
}


async def test_one_trace_and_one_page(tmp_path: Path) -> None:
    need_triton()
    page = f"127.0.0.1:{free_port()}"
    with collecting() as collector:
        environment = {
            "WEFT_OTLP_ENDPOINT": collector.endpoint,
            "WEFT_TRITON_TRACES": collector.http_endpoint,
            "WEFT_TRITON_METRICS_ADDRESS": page,
        }
        with running_mesh(tmp_path, "triton", environment) as mesh:
            trace_id = secrets.token_hex(16)
            headers = {
                "authorization": f"Bearer {mesh.token()}",
                "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01",
            }
            async with httpx.AsyncClient(base_url=mesh.url, headers=headers, timeout=30) as client:
                answer = await client.post("/api/v1/models/generate", json=_ASKED)
                assert answer.status_code == 200, answer.text
                spans = await asyncio.to_thread(collector.wait_for, trace_id, _has_computed)
                metrics = (await client.get(f"http://{page}/metrics")).text
                ready = await client.get(f"http://{page}/ready")
    (generate,) = [span for span in spans if span.name == _GENERATE]
    asked, *_ = [span for span in spans if (span.service, span.name) == ("triton", "InferRequest")]
    (model,) = [span for span in spans if span.name == "embedder" and span.parent_id == asked.span_id]
    assert asked.parent_id == generate.span_id
    assert model.attributes["triton.model_version"] == "1"
    assert all("shuttle" not in span.text for span in spans)
    lines = metrics.splitlines()
    assert 'weft_triton_served_version{model="embedder"} 1.0' in lines
    assert any(line.startswith('nv_inference_request_success{model="embedder"') for line in lines)
    assert any(line.startswith("nv_inference_queue_duration_us{") for line in lines)
    assert (ready.status_code, ready.text) == (200, "ready\n")


def _has_computed(spans: list[Span]) -> bool:
    return {"compute", _GENERATE} <= {span.name for span in spans}

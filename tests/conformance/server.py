"""The server that the official suite tests: `python -m tests.conformance.server weft|plain DESCRIPTORS`.

The suite speaks to it over stdin and stdout: one message asks for a server, one tells its address; it
ends by SIGTERM. `weft` is the servicer behind Weft's interceptor, server options and Envoy configuration;
`plain` is the same servicer on grpc.aio alone behind an Envoy that only speaks gRPC-Web, to tell what is
the doing of those two.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import structlog
from connectrpc.conformance.v1 import server_compat_pb2, service_pb2, service_pb2_grpc

from tests.conformance.plain_envoy import plain_envoy
from tests.conformance.servicer import Conformance
from weftd.envoy import Endpoint, EnvoyConfig, EnvoyProcess, process
from weftd.envoy.template import Rendered, render
from weftd.keys import ensure_keys
from weftd.rpc import server as rpc_server
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor

_NAME = service_pb2.DESCRIPTOR.services_by_name["ConformanceService"].full_name
_HOST = "127.0.0.1"
_ISSUER = "weft"


@asynccontextmanager
async def weft(descriptors: bytes, limit_bytes: int) -> AsyncIterator[int]:
    """Serves behind Weft's own edge; the port of Envoy. `limit_bytes`: of a message, 0 for Weft's own."""
    with tempfile.TemporaryDirectory(prefix="weft-conformance-") as name:
        data = Path(name)
        keys = data / "jwks.json"
        ensure_keys(keys)
        options = dict(rpc_server._OPTIONS)
        if limit_bytes:
            options["grpc.max_receive_message_length"] = limit_bytes
        health = Health([_NAME])
        verifier = TokenVerifier(issuer=_ISSUER, audience=_ISSUER, jwks_file=keys)
        service = rpc_server.Service(
            _NAME, Conformance(), service_pb2_grpc.add_ConformanceServiceServicer_to_server
        )
        with patch.object(rpc_server, "_OPTIONS", list(options.items())):
            server = rpc_server.build_server([service], CallInterceptor(verifier, Drain(1)), health)
        behind = Endpoint(_HOST, rpc_server.bind(server, f"{_HOST}:0"))
        await server.start()
        config = EnvoyConfig(
            listen=Endpoint(_HOST, 0),
            services={"service": (behind,)},
            edge=(behind,),  # no page here
            jwks_file=keys,
            access_log=data / "access.log",
            issuer=_ISSUER,
            audience=_ISSUER,
            requests_per_minute=100_000,
            descriptors=descriptors,
        )
        token = mint(
            keys, issuer=_ISSUER, audience=_ISSUER, tenant="t", subject="s", roles=["member"], ttl_s=3600
        )
        with patch.object(process, "render", lambda *given: _with_token(render(*given), token)):
            try:
                async with EnvoyProcess(config, data / "envoy", concurrency=1) as envoy:
                    yield envoy.address.port
            finally:
                await server.stop(None)


def _with_token(rendered: Rendered, token: str) -> Rendered:
    """The suite sends no token: Envoy adds one as if it had, before the first filter that looks for it."""
    listeners = json.loads(rendered.resources["listeners.json"])
    manager = listeners["resources"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    mutations = next(
        f["typed_config"]["mutations"]["request_mutations"]
        for f in manager["http_filters"]
        if f["name"] == "envoy.filters.http.header_mutation"
    )
    mutations.append({"append": {"header": {"key": "authorization", "value": f"Bearer {token}"}}})
    return replace(
        rendered, resources={**rendered.resources, "listeners.json": json.dumps(listeners).encode()}
    )


@asynccontextmanager
async def plain(_descriptors: bytes, limit_bytes: int) -> AsyncIterator[int]:
    """Serves behind a bare Envoy; its port."""
    options = [("grpc.max_receive_message_length", limit_bytes)] if limit_bytes else []
    server = grpc.aio.server(options=options)
    service_pb2_grpc.add_ConformanceServiceServicer_to_server(Conformance(), server)
    port = server.add_insecure_port(f"{_HOST}:0")
    await server.start()
    try:
        async with plain_envoy(port) as listening:
            yield listening
    finally:
        await server.stop(None)


async def main(kind: str, descriptors: bytes) -> None:
    asked = server_compat_pb2.ServerCompatRequest.FromString(_read(sys.stdin.buffer))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with AsyncExitStack() as stack:
        serve = {"weft": weft, "plain": plain}[kind]
        port = await stack.enter_async_context(serve(descriptors, asked.message_receive_limit))
        answer = server_compat_pb2.ServerCompatResponse(host=_HOST, port=port).SerializeToString()
        sys.stdout.buffer.write(len(answer).to_bytes(4, "big") + answer)
        sys.stdout.buffer.flush()
        await stopped.wait()


def _read(stream: Any) -> bytes:
    size = int.from_bytes(stream.read(4), "big")
    return bytes(stream.read(size))


if __name__ == "__main__":
    # Standard output belongs to the suite.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_bytes()))

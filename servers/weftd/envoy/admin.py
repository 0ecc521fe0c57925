"""Asks a running Envoy about itself, through the unix socket of its admin interface."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from pathlib import Path
from typing import Any

__all__ = ["Admin"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("envoy", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Admin:
    """Every call raises OSError where Envoy does not answer within 2 s."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def ready(self) -> bool:
        """Whether Envoy has taken up its configuration and serves."""
        try:
            status, _ = await self._get("/ready")
        except OSError:
            return False
        return status == 200

    async def port(self, listener: str) -> int | None:
        """The TCP port that this listener is bound to; None where there is no such listener."""
        _, body = await self._get("/listeners?format=json")
        found = {one["name"]: one for one in _object(body).get("listener_statuses", [])}
        if listener not in found:
            return None
        return int(found[listener]["local_address"]["socket_address"]["port_value"])

    async def stats(self, pattern: str) -> dict[str, Any]:
        """Statistics whose name matches the regular expression: text or number by name."""
        _, body = await self._get(f"/stats?format=json&filter={pattern}")
        return {one["name"]: one["value"] for one in _object(body).get("stats", []) if "name" in one}

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(self._get_now, path)

    def _get_now(self, path: str) -> tuple[int, bytes]:
        connection = _UnixConnection(self._path, timeout_s=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"Envoy's admin interface broke off: {error!r}") from error
        finally:
            connection.close()


def _object(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    return value if isinstance(value, dict) else {}

"""How many calls of each tenant run in this process."""

from __future__ import annotations

from typing import Final

from weft.v1 import error_reason_pb2
from weftd.errors import ResourceExhausted

__all__ = ["TenantCalls"]

MOST_CALLS: Final = 12_000
"""Of one tenant in one process, open streams counted: below what Envoy passes on to it for all of them."""


class TenantCalls:
    """Counts them, so that one tenant cannot keep all others out."""

    def __init__(self) -> None:
        self._running: dict[str, int] = {}

    def began(self, tenant: str) -> None:
        """ResourceExhausted OVERLOADED for one too many, which then does not count."""
        running = self._running.get(tenant, 0)
        if running >= MOST_CALLS:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"{MOST_CALLS} calls and streams of this tenant are open here. Close some, then try again.",
            )
        self._running[tenant] = running + 1

    def ended(self, tenant: str) -> None:
        """The other end of `began`."""
        running = self._running[tenant] - 1
        if running:
            self._running[tenant] = running
        else:
            del self._running[tenant]

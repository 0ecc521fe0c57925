"""How many calls of each tenant run in this process."""

from __future__ import annotations

from typing import Final

from weft.v1 import error_reason_pb2
from weftd.errors import ResourceExhausted
from weftd.rpc.tenants import TenantCounts

__all__ = ["TenantCalls"]

MOST_CALLS: Final = 12_000
"""Of one tenant in one process, open streams counted: below what Envoy passes on to it for all of them."""


class TenantCalls(TenantCounts):
    """Counts them up to `MOST_CALLS`."""

    def began(self, tenant: str) -> None:
        """ResourceExhausted OVERLOADED for one too many, which then does not count."""
        if self.of(tenant) >= MOST_CALLS:
            raise ResourceExhausted(
                error_reason_pb2.ERROR_REASON_OVERLOADED,
                f"{MOST_CALLS} calls and streams of this tenant are open here. Close some, then try again.",
            )
        super().began(tenant)

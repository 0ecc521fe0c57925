"""How many of something run for each tenant, so that one tenant cannot keep all others out."""

from __future__ import annotations

from collections import Counter


class TenantCounts:
    """Counts by tenant; one of whom nothing runs is forgotten."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Whether anything runs."""
        return bool(self._running)

    def of(self, tenant: str) -> int:
        """How many run for a tenant."""
        return self._running[tenant]

    def began(self, tenant: str) -> None:
        """One more."""
        self._running[tenant] += 1

    def ended(self, tenant: str) -> None:
        """The other end of `began`."""
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

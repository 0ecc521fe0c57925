"""Who calls, on behalf of which tenant, and how much time is left: set once per call by the interceptor."""

from __future__ import annotations

import contextvars
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """What the verified token and the metadata of the running call say.

    `deadline` is in seconds of `time.monotonic()`, None where the caller set none. `token` is the
    bearer token as it came; outgoing calls carry it on.
    """

    tenant: str
    subject: str
    roles: frozenset[str]
    request_id: str
    token: str
    token_expires_at: float
    deadline: float | None = None
    traceparent: str = ""

    def time_left_s(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: contextvars.ContextVar[Caller] = contextvars.ContextVar("weft_caller")


def current() -> Caller:
    """The caller of the running RPC. LookupError outside of one."""
    return _current.get()


def enter(caller: Caller) -> contextvars.Token[Caller]:
    """Makes `caller` the current one in this context, for the tasks that are started from it too."""
    return _current.set(caller)

"""Who calls, on behalf of which tenant, and how much time is left: set once per call by the interceptor."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from weftd.rpc.tracing import StartSpan

TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Caller:
    """What the verified token and the metadata of the running call say.

    `deadline` is in seconds of `time.monotonic()`, None where the caller set none. `token` is the
    bearer token as it came; outgoing calls carry it on. `traceparent` is the call's own span, or what the
    client sent where no spans are exported; `start_span` only where they are.
    """

    tenant: str
    subject: str
    roles: frozenset[str]
    request_id: str
    token: str
    token_expires_at: float
    deadline: float | None = None
    traceparent: str = ""
    start_span: StartSpan | None = None

    def time_left_s(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_current: contextvars.ContextVar[Caller] = contextvars.ContextVar("weft_caller")


def current() -> Caller:
    """The caller of the running RPC. LookupError outside of one."""
    return _current.get()


def current_or_none() -> Caller | None:
    """The same; None outside of one."""
    return _current.get(None)


def enter(caller: Caller) -> contextvars.Token[Caller]:
    """Makes `caller` the current one in this context, for the tasks that are started from it too."""
    return _current.set(caller)


@contextmanager
def part(name: str, request_id: str) -> Iterator[None]:
    """A part of the running call with a request id of its own, as a turn of `Converse` has.

    What is called and logged inside carries that id. Where spans are exported the part is one, by that
    name: a child of the call's, and the parent of what is called. Outside of an RPC: nothing.
    """
    whole = _current.get(None)
    if whole is None:
        yield
        return
    span, traceparent = None, whole.traceparent
    if whole.start_span is not None:
        span = whole.start_span(name, traceparent, request_id)
        traceparent = span.traceparent
    entered = _current.set(replace(whole, request_id=request_id, traceparent=traceparent))
    code = "OK"
    try:
        yield
    except BaseException as error:
        code = "CANCELLED" if isinstance(error, asyncio.CancelledError) else "UNKNOWN"
        raise
    finally:
        _current.reset(entered)
        if span is not None:
            span.end(code)


def onward() -> dict[str, str]:
    """Headers that carry request id and trace on to a server that is not ours; outside of an RPC: none."""
    current = _current.get(None)
    if current is None:
        return {}
    headers = {"x-request-id": current.request_id}
    if TRACEPARENT.fullmatch(current.traceparent):  # else a client's, for which nobody here vouches
        headers["traceparent"] = current.traceparent
    return headers

"""W3C trace context: the trace that a call belongs to."""

from __future__ import annotations

import re
import secrets
import sys
from typing import Final

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")


def traceparent(request_id: str) -> str:
    """The `traceparent` of a call (https://www.w3.org/TR/trace-context/).

    Where the program uses OpenTelemetry and a span is open, its own: the call becomes a part of it. Else
    one of a new trace, whose id is the request id where that has the form of one, as `new_id` makes it.
    """
    # Whoever opened a span has imported it; for others it need not be there, nor be loaded.
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is not None:
        context = opentelemetry.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 1:02x}"
    trace_id = request_id if _TRACE_ID.fullmatch(request_id) else secrets.token_hex(16)
    return f"00-{trace_id}-{secrets.token_hex(8)}-01"

"""What libraries log, and what nobody catches, as lines of ours: where it was said, never a user's words."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType

import structlog


class LibraryLogs(logging.Handler):
    """Writes a record of the standard library's logging without what was put into its message.

    A message without arguments may have been made from a request: then only its place is told.
    """

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        structlog.get_logger().log(
            record.levelno,
            "library",
            logger=record.name,
            at=f"{record.module}:{record.lineno}",
            **({"said": str(record.msg)} if record.args else {}),
            **({"exc_info": error} if error else {}),
        )


def take_library_logs() -> None:
    """From now on, in this process: warnings of libraries, and exceptions that nobody catches."""
    root = logging.getLogger()
    root.handlers[:] = [LibraryLogs(logging.WARNING)]
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = lambda uncaught: _uncaught(
        uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback
    )


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        structlog.get_logger().critical("uncaught", exc_info=error)

"""What libraries log, and what ends a thread, as lines of ours: where it was said, never a user's words."""

from __future__ import annotations

import logging
import threading

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
    """From now on, in this process: warnings of libraries, and exceptions that end a thread.

    What ends the process itself is left alone: most often it cannot start, and the text says why.
    """
    logging.getLogger().handlers[:] = [LibraryLogs(logging.WARNING)]
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def _thread_ended(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_type is not SystemExit:
        structlog.get_logger().error("thread_ended", exc_info=uncaught.exc_value)

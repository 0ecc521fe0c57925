"""Logs and the HTTP page with metrics and readiness."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, MutableMapping
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

import orjson
import structlog
from prometheus_client import make_wsgi_app

from weftd.rpc import caller
from weftd.rpc.library_logs import take_library_logs

_DEEPEST: Final = 30
_CAUSES: Final = 5


def configure_logging(level: str = "info", *, service: str = "") -> None:
    """structlog to stderr: JSON lines, or for people where stderr is a terminal.

    Every line has time, level, event, and inside a call its request id and tenant. `service` names
    the process where several write to one place.
    """
    pretty = sys.stderr.isatty()
    rendered: list[structlog.types.Processor]
    written: Callable[..., Any]
    if pretty:
        rendered = [structlog.dev.ConsoleRenderer()]
        written = structlog.WriteLoggerFactory(file=sys.stderr)
    else:
        rendered = [_describe_exception, structlog.processors.JSONRenderer(serializer=_to_json)]
        written = structlog.BytesLoggerFactory(file=sys.stderr.buffer)
    structlog.configure(
        processors=[
            _add_caller,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not pretty),
            *([] if not service else [_adder(service)]),
            *rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=written,
        cache_logger_on_first_use=True,
    )
    if not pretty:
        take_library_logs()


def _to_json(event: MutableMapping[str, Any], default: Callable[[Any], Any]) -> bytes:
    try:
        return orjson.dumps(event, default=default, option=orjson.OPT_PASSTHROUGH_DATACLASS)
    except TypeError:  # half a character, as in a file name that is no UTF-8, or a very long number
        return json.dumps(event, default=default).encode()


def _describe_exception(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """What `log.exception` was called in, or the exception given as `exc_info`."""
    given = event.pop("exc_info", None)
    error = sys.exc_info()[1] if given is True else given
    if isinstance(error, BaseException):
        event.update(describe(error))
    return event


def describe(error: BaseException, within: int = _CAUSES) -> dict[str, Any]:
    """An exception for the log: its type and where it was raised, without its text, which may be a user's.

    Causes only so far: some libraries make an exception its own cause.
    """
    frames = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-_DEEPEST:]
    ]
    described: dict[str, Any] = {"error": type(error).__qualname__, "trace": frames}
    if isinstance(error, BaseExceptionGroup) and within:
        described["inner"] = [describe(inner, within - 1) for inner in error.exceptions]
    if error.__cause__ not in (None, error) and within:
        described["cause"] = describe(error.__cause__, within - 1)
    return described


def serve_metrics(
    listening: socket.socket,
    problems: Callable[[], Iterable[str]],
    missing: Callable[[], Iterable[str]] = tuple,
) -> Callable[[], None]:
    """Serves `/metrics` and `/ready` over HTTP from a thread; returns how to stop, which closes the socket.

    `problems` says what keeps the process from being ready: `/ready` is 200 where it is empty, else
    503 with a problem a line. `missing` says what it goes on without: it stands below "ready".
    """
    metrics = make_wsgi_app()

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return metrics(environ, start_response)  # type: ignore[no-any-return]
            case "/ready":
                found = list(problems())
                start_response(
                    "503 Service Unavailable" if found else "200 OK",
                    [("Content-Type", "text/plain; charset=utf-8")],
                )
                return ["".join(f"{line}\n" for line in found or ["ready", *missing()]).encode()]
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"There are /metrics and /ready.\n"]

    server = _Server(listening)
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class _Server(ThreadingMixIn, WSGIServer):
    """On a socket that listens already: another process may have opened it."""

    daemon_threads = True

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname()[:2], _SilentHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = self.server_address = listening.getsockname()[:2]
        self.setup_environ()


class _SilentHandler(WSGIRequestHandler):
    timeout = 10  # seconds, for each read

    def log_message(self, *_args: object) -> None:
        pass


def _add_caller(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    try:
        current = caller.current()
    except LookupError:
        return event
    event.setdefault("request_id", current.request_id)
    event.setdefault("tenant", current.tenant)
    return event


def _adder(service: str) -> structlog.types.Processor:
    def add(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add

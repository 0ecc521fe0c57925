"""What the log says of an exception: where it came from, never its text."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator

import pytest
import structlog

from weftd.rpc.telemetry import configure_logging


class Said(io.TextIOWrapper):
    """A stderr that is read here."""

    def __init__(self) -> None:
        self._raw = io.BytesIO()
        super().__init__(self._raw, encoding="utf-8", write_through=True)

    def getvalue(self) -> str:
        return self._raw.getvalue().decode()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    before = structlog.get_config()
    output = Said()
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    handlers = logging.getLogger().handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging("info")
    yield output
    logging.captureWarnings(False)
    logging.getLogger().handlers = handlers
    structlog.configure(**before)


@pytest.mark.parametrize("given", [True, False])
def test_exceptions_are_told_without_their_text(given: bool, said: Said) -> None:
    log = structlog.get_logger()
    try:
        raise ValueError("what the user said")
    except ValueError as error:
        if given:
            log.error("failed", exc_info=error)
        else:
            log.exception("failed")
    assert "what the user said" not in said.getvalue()
    line = json.loads(said.getvalue())
    assert line["error"] == "ValueError"
    assert "test_log_exceptions.py" in line["trace"][-1]


def test_what_utf_8_cannot_say_is_told_too(said: Said) -> None:
    structlog.get_logger().info("found", file="caf\udce9.txt", count=2**70, text="café 你好")
    line = json.loads(said.getvalue())
    assert (line["file"], line["count"], line["text"]) == ("caf\udce9.txt", 2**70, "café 你好")


def test_causes_in_a_circle_are_told_once_in_a_while(said: Said) -> None:
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    structlog.get_logger().error("failed", exc_info=first)
    line = json.loads(said.getvalue())
    assert (line["error"], line["cause"]["error"]) == ("ValueError", "KeyError")


def test_libraries_are_told_without_what_they_were_given(said: Said) -> None:
    library = logging.getLogger("a.library")
    library.warning("%s is wrong", "what the user said")
    try:
        raise ValueError("what the user said")
    except ValueError:
        library.exception(f"{'what the user said'} is wrong")
    library.info("what the user said")
    assert "what the user said" not in said.getvalue()
    warned, failed = (json.loads(line) for line in said.getvalue().splitlines())
    assert (warned["logger"], warned["said"], warned["level"]) == ("a.library", "%s is wrong", "warning")
    assert warned["at"].startswith("test_log_exceptions:")
    assert (failed["error"], failed["level"], "said" in failed) == ("ValueError", "error", False)


def test_what_ends_a_thread_is_told_without_its_text(said: Said) -> None:
    def fail() -> None:
        raise ValueError("what the user said")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "what the user said" not in said.getvalue()
    line = json.loads(said.getvalue())
    assert (line["event"], line["error"], line["level"]) == ("thread_ended", "ValueError", "error")

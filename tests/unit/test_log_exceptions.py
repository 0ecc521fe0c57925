"""What the log says of an exception: where it came from, never its text."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from weftd.rpc.telemetry import configure_logging


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    before = structlog.get_config()
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    configure_logging("info")
    yield output
    structlog.configure(**before)


@pytest.mark.parametrize("given", [True, False])
def test_exceptions_are_told_without_their_text(given: bool, said: io.StringIO) -> None:
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

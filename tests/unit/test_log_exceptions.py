"""What the log says of an exception: where it came from, never its text."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from weftd.rpc.telemetry import configure_logging


@pytest.fixture(autouse=True)
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    configure_logging("info")
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("given", [True, False])
def test_exceptions_are_told_without_their_text(given: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log = structlog.get_logger()
    try:
        raise ValueError("what the user said")
    except ValueError as error:
        if given:
            log.error("failed", exc_info=error)
        else:
            log.exception("failed")
    said = capsys.readouterr().err
    assert "what the user said" not in said
    line = json.loads(said)
    assert line["error"] == "ValueError"
    assert "test_log_exceptions.py" in line["trace"][-1]

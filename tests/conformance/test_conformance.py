"""The official conformance suite of gRPC and gRPC-Web against Weft's interceptor and edge.

By hand, with more to read (`--trace`, `--run PATTERN`):

    scripts/conformance.sh
    .venv/bin/python -m tests.conformance.suite weft --trace
"""

from __future__ import annotations

import os
import re

import pytest

from tests.conformance import suite

pytestmark = pytest.mark.skipif(
    not suite.installed() and "CI" not in os.environ, reason="no suite here: run scripts/conformance.sh"
)


def passed(said: str) -> int:
    return int(re.findall(r"^(\d+) passed, ", said, re.MULTILINE)[0])


def test_what_envoy_and_grpc_pass_weft_passes() -> None:
    done = suite.run("weft", "--known-failing", suite.KNOWN_FAILING, "--known-flaky", suite.KNOWN_FLAKY)
    assert done.returncode == 0, done.stdout[-5000:]
    assert passed(done.stdout) > 700


def test_what_is_listed_as_failing_fails_without_weft_too() -> None:
    listed = (suite.KNOWN_FAILING, suite.KNOWN_FLAKY)
    only = [argument for file in listed for argument in ("--run", file, "--known-failing", file)]
    done = suite.run("plain", *only)
    assert done.returncode == 0, done.stdout[-5000:]
    assert passed(done.stdout) == 0

"""Whoever is refused though nothing is wrong with the request is told when to come again."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from weft.v1.error_reason_pb2 import ErrorReason
from weftd import errors
from weftd.edge.chat_messages import error_text
from weftd.edge.replies import refused
from weftd.envoy.replies import local_replies
from weftd.rpc.status import to_status, unavailable

ROOT = Path(__file__).parents[2]
PREFIX = "ERROR_REASON_"
# By the contract, what helps against these is to wait, and nothing else has to be mended.
PASSING = (
    *("TURN_RUNNING", "INDEX_RUNNING"),
    *("MODEL_UNAVAILABLE", "MODEL_RATE_LIMITED", "MODEL_BROKEN", "MODEL_TIMEOUT"),
    *("BACKEND_UNAVAILABLE", "DRAINING", "OVERLOADED"),
)


def retry_of(status: status_pb2.Status) -> float:
    """Seconds; 0 where the status does not say."""
    found = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(found):
            return float(found.retry_delay.ToMilliseconds() / 1000)
    return 0.0


def comments() -> dict[str, str]:
    source = (ROOT / "proto/weft/v1/error_reason.proto").read_text()
    found = re.findall(rf"((?: *//[^\n]*\n)+) *{PREFIX}(\w+) =", source)
    return {name: " ".join(line.strip(" /") for line in comment.splitlines()) for comment, name in found}


def raised() -> Iterator[tuple[str, str, str]]:
    """(reason, class, source) of each error that our code raises with that reason."""
    for file in sorted((ROOT / "servers/weftd").rglob("*.py")):
        text = file.read_text()
        for match in re.finditer(rf"(\w+)\(\s*(?:error_reason_pb2\.)?{PREFIX}(\w+)", text):
            if isinstance(getattr(errors, match[1], None), type):
                following = text[match.start() : match.start() + 600]
                yield match[2], match[1], following


def test_the_contract_promises_it_for_these_and_no_others() -> None:
    assert {name for name, comment in comments().items() if "RetryInfo" in comment} == set(PASSING)
    assert set(PASSING) < {name.removeprefix(PREFIX) for name in dict(ErrorReason.items())}


@pytest.mark.parametrize("reason", PASSING)
def test_all_that_is_raised_for_it_says_when(reason: str) -> None:
    found = [(kind, source) for name, kind, source in raised() if name == reason]
    assert found or reason.startswith("MODEL_"), f"nothing raises {reason}: look for how it is written"
    for kind, source in found:
        always = kind in ("Unavailable", "ResourceExhausted")  # a second, unless it says otherwise
        assert always or "retry_after_s" in source, source


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.ResourceExhausted])
def test_it_is_told_on_every_wire(kind: type[errors.Unavailable]) -> None:
    error = kind(ErrorReason.Value(PREFIX + "OVERLOADED"), "Too much. Wait.", retry_after_s=2.5)
    assert retry_of(to_status(error)) == 2.5
    assert json.loads(error_text(error))["retry_after_ms"] == 2500
    answer = refused(503, error)
    assert answer.headers["retry-after"] == "2"
    assert any("retry_delay" in detail for detail in json.loads(bytes(answer.body))["details"])
    assert retry_of(to_status(unavailable("chat"))) > 0


def test_what_has_to_be_mended_first_says_nothing() -> None:
    error = errors.InvalidArgument({"top_k": "Is 99."})
    assert retry_of(to_status(error)) == 0
    assert "retry_after_ms" not in json.loads(error_text(error))


def _status_of(mapper: dict[str, Any]) -> tuple[int, Message | None, dict[str, Any]]:
    """The HTTP status that a local reply of Envoy's is for, and what it sends: as details or as JSON."""
    text = json.dumps(mapper["filter"])
    status = int(re.search(r'"default_value": (\d+)', text)[1])  # type: ignore[index] # each has one
    headers = {each["header"]["key"]: each["header"]["value"] for each in mapper.get("headers_to_add", [])}
    packed = headers.get("grpc-status-details-bin")
    details = None if packed is None else status_pb2.Status.FromString(base64.b64decode(packed + "=="))
    return status, details, mapper["body_format_override"].get("json_format", {})


@pytest.mark.parametrize("status", [429, 502, 503])
def test_the_edge_says_it_over_grpc_and_rest(status: int) -> None:
    replies = [_status_of(mapper) for mapper in local_replies()["mappers"]]
    mine = [(details, body) for code, details, body in replies if code == status]
    assert len(mine) == 3  # gRPC-Web, gRPC, REST
    for details, body in mine:
        if details is not None:
            assert isinstance(details, status_pb2.Status)
            assert retry_of(details) > 0
        else:
            assert any("retry_delay" in detail for detail in body["details"])

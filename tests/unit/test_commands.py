"""What `weft` says when something is to be mended first: a line, not a traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from weftd.__main__ import main
from weftd.addresses import endpoint
from weftd.compose import CannotStart, open_records
from weftd.envoy.config import Endpoint
from weftd.rpc import telemetry
from weftd.settings import Settings

LONG_ENOUGH = "x" * 43


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"WEFT_{name.upper()}", raising=False)
    monkeypatch.setenv("WEFT_DATA", str(tmp_path / "data"))
    # It would write to this test's own stderr for the rest of the run.
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_arguments, **_named: None)


def said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, **environment: str
) -> str:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["weft", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "boss"], "There is no role 'boss'; there are member, editor, operator."),
        (["--tenant", "a b"], "A tenant is up to 128"),
    ],
)
def test_a_token_with_a_claim_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert said(monkeypatch, capsys, "token", *arguments).startswith(f"✗ {message}")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WEFT_PORT", "0", "✗ WEFT_PORT: Input should be greater than or equal to 1"),
        ("WEFT_ENDPOINTS", "[", '✗ error parsing value for field "endpoints"'),
        ("WEFT_ENDPOINTS", '[{"base_url": "http://x"}]', "✗ WEFT_ENDPOINTS_0_MODEL_ID: Field required"),
    ],
)
def test_a_setting_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    assert said(monkeypatch, capsys, "token", **{variable: value}).startswith(message)


@pytest.mark.parametrize("command", [["up"], ["token"], ["serve", "edge"]])
def test_a_data_directory_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]
) -> None:
    taken = tmp_path / "data"
    taken.write_text("a file")
    message = said(monkeypatch, capsys, *command)
    assert message.startswith("✗ ")
    assert str(taken) in message


async def test_records_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_bytes(b"no database at all" * 500)
    with pytest.raises(CannotStart, match="records database cannot be used: file is not a database"):
        async with open_records(Settings(data=tmp_path)):
            pass


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings(data=Path("x"))
    for name in Settings.model_fields:
        monkeypatch.setenv(f"WEFT_{name.upper()}", "")
    assert Settings(data=Path("x")) == defaults


def test_a_file_of_keys_that_is_missing_is_not_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    assert "keys.json" in said(monkeypatch, capsys, "token", WEFT_JWKS_FILE=str(keys))
    assert not keys.exists()


def test_keys_that_cannot_sign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": LONG_ENOUGH, "y": LONG_ENOUGH}]}))
    assert said(monkeypatch, capsys, "token", WEFT_JWKS_FILE=str(keys)).startswith("✗ ")


def test_a_service_that_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(monkeypatch, capsys, "serve", "chat", "voices").startswith("✗ There is no service voices.")


def test_whoever_can_reach_the_page_from_elsewhere_gets_no_token() -> None:
    assert Settings().gives_dev_token
    assert Settings(host="::1").gives_dev_token
    assert not Settings(dev_token=False).gives_dev_token
    assert not Settings(host="0.0.0.0").gives_dev_token
    # Served to another machine, where Envoy listens on who knows what.
    assert not Settings(edge_address="10.0.0.2:50080").gives_dev_token
    assert not Settings(edge_address="0.0.0.0:50080").gives_dev_token


def test_a_token_for_everyone_must_not_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(monkeypatch, capsys, "token", WEFT_HOST="0.0.0.0", WEFT_DEV_TOKEN="true")
    assert text.startswith("✗ WEFT_DEV_TOKEN=true gives anyone")


def test_a_triton_of_another_protocol_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(monkeypatch, capsys, "up", WEFT_TRITON_URL="http://127.0.0.1:8001")
    assert "WEFT_TRITON_URL: http://127.0.0.1:8001 is no address" in message
    assert "grpc://host:port" in message


def test_a_misspelt_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WEFT_RECORD_URL", "x")
    monkeypatch.setenv("WEFT_TOKEN", "x")
    monkeypatch.setenv("WEFT_SERVICE_HOST", "10.0.0.1")
    message = said(monkeypatch, capsys, "token", "--role", "boss")
    assert "WEFT_RECORD_URL is no setting and does nothing: is WEFT_RECORDS_URL meant?" in message
    assert message.count("is no setting") == 1


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), ("[::1]:80", "::1", 80), ("a.b:1", "a.b", 1)],
)
def test_an_address_is_read_alike_by_whoever_listens_and_whoever_calls(
    address: str, host: str, port: int
) -> None:
    assert endpoint(address) == Endpoint(host, port)

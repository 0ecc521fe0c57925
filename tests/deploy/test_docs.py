"""The documents' tables say what the code says."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from pydantic import SecretStr

from weft.v1.error_reason_pb2 import ErrorReason
from weftd.envoy.config import contract_descriptors
from weftd.rpc.access import role_needed
from weftd.settings import Endpoint, Settings

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs/protocol.md"
OPERATIONS = ROOT / "docs/operations.md"
DOCUMENTS = [ROOT / "README.md", PROTOCOL, OPERATIONS, *sorted((ROOT / "docs/adr").glob("*.md"))]
HTTP = {
    "INVALID_ARGUMENT": "400",
    "UNAUTHENTICATED": "401",
    "PERMISSION_DENIED": "403",
    "NOT_FOUND": "404",
    "ALREADY_EXISTS": "409",
    "FAILED_PRECONDITION": "400",
    "UNIMPLEMENTED": "501",
    "RESOURCE_EXHAUSTED": "429",
    "UNAVAILABLE": "503",
    "DEADLINE_EXCEEDED": "504",
    "INTERNAL": "500",
    "event": "200",
    "document": "200",
}


def table(document: Path, heading: str) -> list[list[str]]:
    """The rows of the first table under `heading`, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}$", document.read_text("utf-8"), flags=re.M)
    assert len(section) == 2, f"{document.name} has no heading {heading!r}, or two"
    rows: list[list[str]] = []
    for line in section[1].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return rows[2:]


def plain(cell: str) -> str:
    return cell.strip("`")


def test_every_error_reason_is_explained_and_no_other() -> None:
    rows = table(PROTOCOL, "Errors")
    names = [plain(row[0]) for row in rows]
    assert names == [name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()[1:]]
    assert all(row[3] for row in rows)


def test_the_status_of_a_reason_fits_its_http_code_and_the_contract() -> None:
    contract = (ROOT / "proto/weft/v1/error_reason.proto").read_text("utf-8")
    found = re.findall(r"((?:^ *//.*\n)+)^ *ERROR_REASON_(\w+) =", contract, re.M)
    comments = {name: comment for comment, name in found}
    for reason, statuses, http, _ in table(PROTOCOL, "Errors"):
        status = statuses.split(",")[0]
        assert http.split(",")[0] == HTTP[status], reason
        if status not in ("event", "document"):
            assert status in comments[plain(reason)], reason
        else:
            assert not re.search("|".join(code for code in HTTP if code.isupper()), comments[plain(reason)])


def _shown(default: Any) -> str:
    match default:
        case None | "" | [] | SecretStr():
            return "empty"
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def test_every_setting_is_explained_with_its_default_and_no_other() -> None:
    explained = {plain(row[0]): row[1] for row in table(OPERATIONS, "Settings")}
    assert explained == {
        f"WEFT_{name.upper()}": _shown(field.get_default(call_default_factory=True))
        for name, field in Settings.model_fields.items()
    }


def test_the_fields_of_an_endpoint_are_explained() -> None:
    rows = table(OPERATIONS, "Language models")
    assert [plain(row[0]) for row in rows] == list(Endpoint.model_fields)


def _metrics() -> dict[str, str]:
    kinds = {"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"}
    found = {}
    for path in (ROOT / "servers/weftd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if kind in kinds and isinstance(name, ast.Constant) and str(name.value).startswith("weft_"):
                found[str(name.value)] = kind.lower()
    return found


def test_every_metric_is_explained_and_no_other() -> None:
    assert {plain(row[0]): row[1] for row in table(OPERATIONS, "Metrics")} == _metrics()
    assert all(row[2] and row[3] for row in table(OPERATIONS, "Metrics"))


def test_alerts_ask_for_metrics_that_there_are() -> None:
    rows = table(OPERATIONS, "Alerts")
    asked = {name for row in rows for name in re.findall(r"\bweft_\w+", row[1])}
    assert asked
    known = _metrics()
    for name in asked:
        whole, _, part = name.rpartition("_")
        assert name in known or (part in ("bucket", "count", "sum") and known.get(whole) == "histogram"), name


def test_every_call_is_listed_with_its_path_and_role() -> None:
    expected = {}
    for file in FileDescriptorSet.FromString(contract_descriptors()).file:
        for service, method in ((each, method) for each in file.service for method in each.method):
            rule = method.options.Extensions[annotations_pb2.http]
            verb = rule.WhichOneof("pattern")
            rest = f"{verb.upper()} {getattr(rule, verb)}" if verb else ""
            role = role_needed(f"/{file.package}.{service.name}/{method.name}")
            expected[f"{service.name}.{method.name}"] = (rest, role)
    assert _listed_calls() == expected


def _listed_calls() -> dict[str, tuple[str, str]]:
    text = PROTOCOL.read_text("utf-8")
    rows = re.findall(r"^\| `(\w+Service\.\w+)` \| (.*?) \| (\w+) \|$", text.replace("| |", "|  |"), re.M)
    return {name: (plain(rest.strip()), role) for name, rest, role in rows}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def _blocks(language: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        for number, block in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.M | re.S), 1
        )
    ]


@pytest.mark.parametrize("block", _blocks("python"))
def test_python_is_python(block: str) -> None:
    compile(block, "document", "exec")


@pytest.mark.parametrize("block", _blocks("sh"))
def test_shell_is_shell(block: str) -> None:
    checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for body in re.findall(r"-d '(\{.*?\})'", block, re.S):
        json.loads(body)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_settings_and_paths_that_are_named_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    named = set(re.findall(r"\bWEFT_[A-Z0-9_]+[A-Z]\b", text))
    of_the_sdk = {"WEFT_ADDRESS", "WEFT_TOKEN"}
    an_error = {"WEFT_ENDPOINTS_0_MODEL_ID"}
    assert named <= {f"WEFT_{name.upper()}" for name in Settings.model_fields} | of_the_sdk | an_error
    paths = [rest.split(" ")[1] for rest, _ in _listed_calls().values() if rest]
    of_the_edge = ["/api/v1/dev/token", "/api/v1/chat/ws"]
    patterns = [re.sub(r"\{\w+\}", "[^/]+", path) for path in paths] + of_the_edge
    for path in re.findall(r"/api/v1/[\w/{}.-]*\w\}?", text):
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path

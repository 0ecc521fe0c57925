"""Runs the official suite: `python -m tests.conformance.suite weft|plain [ARGUMENT OF THE SUITE …]`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
_VERSION = "v1.0.7"  # as in scripts/conformance.sh
_HOME = _ROOT / ".cache" / "conformance" / _VERSION
_PROGRAM = _HOME / "connectconformance"
_LIMIT_S = 90

KNOWN_FAILING = f"@{_HERE / 'known_failing.txt'}"
KNOWN_FLAKY = f"@{_HERE / 'known_flaky.txt'}"


def installed() -> bool:
    return _PROGRAM.exists()


def run(kind: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of the suite against the server that `kind` names, see `server`; its report is the output."""
    if not installed():
        raise FileNotFoundError(f"{_PROGRAM} is not there: run scripts/conformance.sh.")
    with tempfile.TemporaryDirectory(prefix="weft-conformance-") as stubs:
        descriptors = _generate(Path(stubs))
        return subprocess.run(
            [
                *(str(_PROGRAM), "--mode", "server", "--conf", str(_HERE / "suite.yaml"), *arguments, "--"),
                *(sys.executable, "-m", "tests.conformance.server", kind, str(descriptors)),
            ],
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": stubs},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )


def _generate(directory: Path) -> Path:
    """Makes the stubs of the suite's own contract; its descriptor set."""
    protos = _HOME / "proto"
    descriptors = directory / "suite.binpb"
    names = ("service", "config", "server_compat")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", "--include_imports"),
            *(f"--python_out={directory}", f"--grpc_python_out={directory}"),
            f"--descriptor_set_out={descriptors}",
            *(f"connectrpc/conformance/v1/{name}.proto" for name in names),
        ],
        check=True,
    )
    return descriptors


if __name__ == "__main__":
    finished = run(*sys.argv[1:])
    print(finished.stdout)
    sys.exit(finished.returncode)

"""The page's own tests, in Chromium, against a whole mesh."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.servers.mesh import running_mesh

WEB = Path(__file__).parents[2] / "clients" / "web"


@pytest.mark.timeout(600)
def test_the_page_in_chromium(tmp_path: Path) -> None:
    if not os.environ.get("CI") and not shutil.which("chromium"):
        pytest.skip("There is no chromium: install it, or run `make test` as root.")
    with running_mesh(tmp_path) as mesh:
        run = subprocess.run(
            ["npm", "test", "--silent"],
            cwd=WEB,
            env={**os.environ, "WEFT_URL": mesh.url},
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-4000:] + mesh.logs()

"""Where NVIDIA's wheel has put the server, and what it needs to run."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Installation", "TritonMissing"]

# Run by the models' Python, which may be another version: the standard library only.
_ASK = """
import importlib.metadata, importlib.util, json, sys, sysconfig
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "package": spec and spec.origin,
    "libraries": sysconfig.get_config_var("LIBDIR"),
    "version": "%d.%d" % sys.version_info[:2],
    "bin": sys.prefix + "/bin",
    "torch": importlib.util.find_spec("torch") is not None,
    "numpy": importlib.metadata.version("numpy") if importlib.util.find_spec("numpy") else "",
}))
"""


class TritonMissing(Exception):
    """The server is not there, or its Python does not fit. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Installation:
    """The server of a wheel. `stub` runs models in the Python that the wheel is installed in."""

    server: Path
    backend: Path
    stub: Path
    caches: Path
    libraries: str
    bin: str
    has_torch: bool

    @classmethod
    def find(cls, python: Path) -> Installation:
        """Asks `python`, the interpreter of the models' environment. Blocks for some 50 ms.

        TritonMissing where it is none, has no Triton, or numpy 2, with which the stub reads zeros.
        """
        install = "Run `make triton`, or name another environment's Python with WEFT_MODELS_PYTHON."
        try:
            asked = subprocess.run(
                [str(python), "-I", "-c", _ASK], capture_output=True, text=True, timeout=60, check=True
            )
            found = json.loads(asked.stdout)
        except FileNotFoundError:
            raise TritonMissing(f"There is no Triton here: {python} does not exist. {install}") from None
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise TritonMissing(f"{python} is no Python that can be run ({error}). {install}") from None
        if not found["package"]:
            raise TritonMissing(f"{python} has no package nvidia-pytriton. {install}")
        if not found["numpy"].startswith("1."):
            raise TritonMissing(
                f"{python} has numpy {found['numpy'] or 'not at all'}; Triton needs numpy 1. {install}"
            )
        package = Path(found["package"]).parent
        triton = package / "tritonserver"
        stub = triton / "python_backend_stubs" / found["version"] / "triton_python_backend_stub"
        if not stub.is_file():
            raise TritonMissing(f"Triton has no stub for Python {found['version']}: use 3.11. {install}")
        libraries = [found["libraries"], str(package.parent / "nvidia_pytriton.libs")]
        return cls(
            server=triton / "bin" / "tritonserver",
            backend=triton / "backends" / "python",
            stub=stub,
            caches=triton / "caches",
            libraries=":".join(filter(None, libraries)),
            bin=found["bin"],
            has_torch=found["torch"],
        )

    def link_backend(self, directory: Path) -> Path:
        """Makes `directory` a backend directory: the python backend with the stub of this Python in it."""
        python = directory / "python"
        python.mkdir(parents=True, exist_ok=True)
        for source in [*self.backend.glob("*.so"), *self.backend.glob("*.py"), self.stub]:
            link = python / source.name
            link.unlink(missing_ok=True)
            link.symlink_to(source)
        return directory

    def environment(self) -> dict[str, str]:
        """What the server runs with: nothing of the mesh's settings, secrets in them or Python paths."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WEFT_", "PYTHON", "VIRTUAL_ENV"))
        }
        return {
            **kept,
            "LD_LIBRARY_PATH": ":".join(filter(None, [self.libraries, kept.get("LD_LIBRARY_PATH")])),
            "PATH": f"{self.bin}:{kept.get('PATH', os.defpath)}",
            # A version's directory stays as it was published.
            "PYTHONDONTWRITEBYTECODE": "1",
        }

"""The code of the models in `triton_models/`, for this process: the very files that Triton serves.

encoder = model_code.load("embedder", "encoder")
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

__all__ = ["MODELS", "load"]

MODELS: Final = Path(__file__).parents[1] / "triton_models"
"""Triton's repository as it comes with Weft: `<model>/config.pbtxt` and `<model>/1/*.py`."""


def load(model: str, module: str) -> Any:
    """`<module>.py` of the version directory of `model`, which is a package by itself. Not for `model.py`."""
    name = f"weftd_model_{model}"
    if name not in sys.modules:
        package = ModuleType(name, f"The code of {model}.")
        package.__path__ = [str(MODELS / model / "1")]
        sys.modules[name] = package
    return importlib.import_module(f"{name}.{module}")

"""Serves `cross_encoder.py` from NVIDIA Triton's Python backend."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

if int(np.__version__.split(".")[0]) >= 2:
    raise ImportError(
        f"numpy {np.__version__} is installed for Triton's Python, with which its backend reads zeros. "
        'Install "numpy<2" there.'
    )

from .cross_encoder import CrossEncoder, Device


class TritonPythonModel:
    """`QUERY` and `PASSAGE` in, `SCORE` out: one row for each pair."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        if not given.get("directory"):
            raise ValueError("No cross-encoder is set: name its directory in config.pbtxt.")
        cache = Path(given.get("cache") or Path(tempfile.gettempdir()) / "weft-models")
        device: Device = "gpu" if args["model_instance_kind"] == "GPU" else "cpu"
        self._model = CrossEncoder(Path(given["directory"]), cache, device, int(config["max_batch_size"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """The pairs of all requests as one batch."""
        counts: list[int] = []
        pairs: list[tuple[str, str]] = []
        for request in requests:
            queries, passages = _texts(request, "QUERY"), _texts(request, "PASSAGE")
            counts.append(len(queries))
            pairs += zip(queries, passages, strict=True)
        scores = self._model.score(pairs)[:, None]
        ends = np.cumsum(counts)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("SCORE", scores[end - count : end])])
            for count, end in zip(counts, ends, strict=True)
        ]


def _texts(request: Any, name: str) -> list[str]:
    array = pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel()
    return [text.decode("utf-8", "replace") for text in array]

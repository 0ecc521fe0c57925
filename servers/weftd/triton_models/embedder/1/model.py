"""Serves `encoder.py` from NVIDIA Triton's Python backend."""

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

from .encoder import Device, Encoder, describe


class TritonPythonModel:
    """`TEXT` in, `EMBEDDING` and `MODEL_ID` out: one row for each text."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        directory = Path(given["directory"]) if given.get("directory") else None
        cache = Path(given.get("cache") or Path(tempfile.gettempdir()) / "weft-models")
        device: Device = "gpu" if args["model_instance_kind"] == "GPU" else "cpu"
        self._encoder = Encoder(describe(directory), cache, device, int(config["max_batch_size"]))
        self._id = self._encoder.model.model_id.encode()

    def execute(self, requests: list[Any]) -> list[Any]:
        """The texts of all requests as one batch."""
        inputs = [pb_utils.get_input_tensor_by_name(each, "TEXT").as_numpy().ravel() for each in requests]
        texts = [text.decode("utf-8", "replace") for array in inputs for text in array]
        vectors = self._encoder.embed(texts)
        responses, start = [], 0
        for array in inputs:
            rows = vectors[start : start + len(array)]
            ids = np.full((len(array), 1), self._id, dtype=object)
            tensors = [pb_utils.Tensor("EMBEDDING", rows), pb_utils.Tensor("MODEL_ID", ids)]
            responses.append(pb_utils.InferenceResponse(tensors))
            start += len(array)
        return responses

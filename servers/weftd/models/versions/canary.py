"""One call that shows whether a version works: what is sent, and what must come back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from weftd.models.versions.model_config import Config
from weftd.models.versions.refusal import VersionRefused

__all__ = ["CANARY_FILE", "canary_inputs", "check_outputs", "read_canary"]

CANARY_FILE: Final = "canary.json"
"""In a version's directory: inputs by name, each a value or a (nested) list of them."""

_WORD: Final = b"canary"


def read_canary(content: bytes) -> dict[str, Any]:
    """VersionRefused where `content` is no JSON object."""
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise VersionRefused(f"its {CANARY_FILE} is no JSON object of inputs by name")
    return given


def canary_inputs(config: Config, given: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Tensors for a model: those given, for the rest zeros, or the word "canary" for texts.

    Optional ones only where given; one row where the model takes batches. VersionRefused where one does
    not fit.
    """
    inputs: dict[str, npt.NDArray[Any]] = {}
    for tensor in config.input:
        shape = [1] * bool(config.max_batch_size) + [1 if size < 0 else size for size in tensor.dims]
        dtype = _dtype(tensor)
        if tensor.name in given:
            inputs[tensor.name] = _given(tensor.name, given[tensor.name], dtype, shape, tensor.dims)
        elif not tensor.optional:
            zero = np.full(shape, _WORD, object) if dtype == np.object_ else np.zeros(shape, dtype)
            inputs[tensor.name] = zero
    if unknown := given.keys() - {tensor.name for tensor in config.input}:
        raise VersionRefused(f"its {CANARY_FILE} has {sorted(unknown)[0]!r}, which is no input of the model")
    return inputs


def _given(name: str, value: Any, dtype: Any, shape: list[int], dims: Any) -> npt.NDArray[Any]:
    try:
        array = np.array(value, object)
        if dtype == np.object_:
            array = np.array([str(each).encode() for each in array.flat], object).reshape(array.shape)
        else:
            array = array.astype(dtype)
        # With a size of -1 the value's own shape is taken, else the one that the model asks for.
        free = any(size < 0 for size in dims)
        rows = [1] * (len(shape) - len(dims))
        return array.reshape([*rows, *(array.shape or (1,))] if free else shape)
    except (ValueError, TypeError, OverflowError):
        raise VersionRefused(f"its {CANARY_FILE} has a value for {name} that does not fit") from None


def check_outputs(config: Config, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
    """VersionRefused where an answer has not exactly the tensors that the configuration promises.

    A stream's answers may each have some of them.
    """
    promised = {tensor.name: tensor for tensor in config.output}
    if unknown := outputs.keys() - promised.keys():
        raise VersionRefused(f"its answer has {sorted(unknown)[0]!r}, which is no output of the model")
    missing = promised.keys() - outputs.keys()
    if missing and not config.model_transaction_policy.decoupled:
        raise VersionRefused(f"its answer lacks the output {sorted(missing)[0]}")
    for name, array in outputs.items():
        tensor = promised[name]
        if array.dtype != _dtype(tensor):
            raise VersionRefused(f"its answer has {name} of type {array.dtype}, not {_dtype(tensor)}")
        shape = [1] * bool(config.max_batch_size) + list(tensor.dims)
        fits = len(shape) == array.ndim and all(
            want in (-1, size) for want, size in zip(shape, array.shape, strict=True)
        )
        if not fits:
            raise VersionRefused(f"its answer has {name} of shape {list(array.shape)}, not {shape}")


def _dtype(tensor: Any) -> np.dtype[Any]:
    name = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    found = triton_to_np_dtype("BYTES" if name == "STRING" else name)
    if found is None:
        raise VersionRefused(f"the tensor {tensor.name} has the type {name}, which cannot be checked")
    dtype: np.dtype[Any] = np.dtype(found)
    return dtype

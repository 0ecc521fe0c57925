"""A BERT model as one ONNX file, written from its weights without torch.

The file uses onnxruntime's fused operators (domain `com.microsoft`), and holds the model's head too.
A sentence encoder: `input_ids`, `attention_mask` (batch, sequence) in, `sentence_embedding`
(batch, hidden) of unit length out. A cross-encoder: `token_type_ids` in as well, `logits` (batch, 1)
out. Architecture: Devlin et al., "BERT" (2019); Reimers and Gurevych, "Sentence-BERT" (2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load_file

Head = Literal["mean", "cls", "score"]
_FUSED = "com.microsoft"
_SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


def write_onnx(weights: Path, config: Mapping[str, Any], head: Head, target: Path) -> None:
    """Writes `target` from the safetensors file `weights`.

    `head` "mean" and "cls" make a sentence encoder of that pooling, "score" a cross-encoder. Raises
    ValueError for any architecture but plain BERT, and for a file that is not whole.
    """
    for key, value in _SUPPORTED.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{weights.parent} is a model with {key}={config[key]!r}; only {value!r} can be converted "
                "here. Export it to ONNX (optimum-cli does it) and put model.onnx into that directory."
            )
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read: {error}. Is the file whole?") from error
    prefix = "" if "embeddings.word_embeddings.weight" in tensors else "bert."
    graph = _Graph({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    try:
        _encode(graph, config, head)
    except KeyError as error:
        raise ValueError(
            f"{weights} has no tensor {error}: it does not hold the whole of a BERT model."
        ) from None
    onnx.save(graph.model(), str(target))


class _Graph:
    """Nodes and constants as they are added. Values are known by name."""

    def __init__(self, weights: Mapping[str, npt.NDArray[Any]]) -> None:
        self._weights = weights
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs = ["input_ids", "attention_mask"]
        self._output: Any = None

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        return self._weights[name].astype(np.float32)

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        self._constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def stored(self, name: str) -> str:
        return self.constant(name, self.weight(name))

    def transposed(self, name: str) -> str:
        """torch keeps the weight of a linear layer as (out, in)."""
        return self.constant(name, self.weight(name).T)

    def add(
        self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any
    ) -> str:
        self._nodes.append(helper.make_node(operator, inputs, list(outputs), domain=domain, **attributes))
        return outputs[0]

    def input(self, name: str) -> str:
        self._inputs.append(name)
        return name

    def output(self, name: str, width: int) -> None:
        self._output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])

    def model(self) -> Any:
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in self._inputs
        ]
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, "encoder", inputs, [self._output], constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _encode(graph: _Graph, config: Mapping[str, Any], head: Head) -> None:
    epsilon = float(config["layer_norm_eps"])
    graph.add("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
    graph.add("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    if head == "score":
        graph.add("Cast", [graph.input("token_type_ids")], "segments", to=TensorProto.INT32)
    else:
        graph.add("Sub", ["ids", "ids"], "segments")
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    state = graph.add(
        "EmbedLayerNormalization",
        ["ids", "segments"]
        + [graph.stored(f"embeddings.{table}.weight") for table in tables]
        + [graph.stored("embeddings.LayerNorm.bias"), "mask"],
        "embedded",
        "lengths",
        domain=_FUSED,
        epsilon=epsilon,
    )
    for index in range(int(config["num_hidden_layers"])):
        state = _layer(graph, f"encoder.layer.{index}.", state, int(config["num_attention_heads"]), epsilon)
    if head == "score":
        _classify(graph, state)
    else:
        _pool(graph, state, head)
        graph.output("sentence_embedding", int(config["hidden_size"]))


def _layer(graph: _Graph, name: str, state: str, heads: int, epsilon: float) -> str:
    attention = f"{name}attention."
    parts = [f"{attention}self.{part}" for part in ("query", "key", "value")]
    weight = graph.constant(
        f"{name}qkv", np.concatenate([graph.weight(f"{p}.weight").T for p in parts], axis=1)
    )
    bias = graph.constant(f"{name}qkv_bias", np.concatenate([graph.weight(f"{p}.bias") for p in parts]))
    mixed = graph.add(
        "Attention", [state, weight, bias, "lengths"], f"{name}mixed", domain=_FUSED, num_heads=heads
    )
    state = _residual(graph, f"{attention}output.", mixed, state, epsilon)
    wide = graph.add("MatMul", [state, graph.transposed(f"{name}intermediate.dense.weight")], f"{name}wide")
    wide = graph.add(
        "BiasGelu", [wide, graph.stored(f"{name}intermediate.dense.bias")], f"{name}gelu", domain=_FUSED
    )
    return _residual(graph, f"{name}output.", wide, state, epsilon)


def _residual(graph: _Graph, name: str, value: str, skip: str, epsilon: float) -> str:
    """LayerNorm(linear(value) + skip), the linear layer's bias within the fused operator."""
    value = graph.add("MatMul", [value, graph.transposed(f"{name}dense.weight")], f"{name}linear")
    norm = [graph.stored(f"{name}LayerNorm.{part}") for part in ("weight", "bias")]
    inputs = [value, skip, *norm, graph.stored(f"{name}dense.bias")]
    return graph.add("SkipLayerNormalization", inputs, f"{name}state", domain=_FUSED, epsilon=epsilon)


def _first(graph: _Graph, state: str) -> str:
    return graph.add("Gather", [state, graph.constant("first", np.array(0))], "first_state", axis=1)


def _classify(graph: _Graph, state: str) -> None:
    """BERT's pooler, and a linear layer of one output on it."""
    if len(graph.weight("classifier.weight")) != 1:
        raise ValueError("The model gives several scores for a pair; a cross-encoder gives one.")
    value = _first(graph, state)
    for layer, name in (("pooler.dense", "pooled"), ("classifier", "logits")):
        inputs = [value, graph.stored(f"{layer}.weight"), graph.stored(f"{layer}.bias")]
        graph.add("Gemm", inputs, name, transB=1)
        value = graph.add("Tanh", [name], "squashed") if layer == "pooler.dense" else name
    graph.output("logits", 1)


def _pool(graph: _Graph, state: str, head: Head) -> None:
    if head == "cls":
        pooled = _first(graph, state)
    else:  # the mean has the direction of the sum, and only that is kept
        graph.add("Cast", ["attention_mask"], "weights", to=TensorProto.FLOAT)
        axis = graph.constant("axis", np.array([1]))
        graph.add("Unsqueeze", ["weights", axis], "row")
        graph.add("MatMul", ["row", state], "sums")
        pooled = graph.add("Squeeze", ["sums", axis], "pooled")
    graph.add("LpNormalization", [pooled], "sentence_embedding", axis=1, p=2)

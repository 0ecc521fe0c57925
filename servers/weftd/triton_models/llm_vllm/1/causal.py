"""A causal language model by vLLM: what `llm/1/causal.py` is by transformers. Nothing here knows Triton."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.async_llm_engine import AsyncLLMEngine
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind

from .asked import Asked, Busy, Counts, Failed, Piece, Refused
from .plain import marks, plain

__all__ = ["Asked", "Busy", "Causal", "Counts", "Failed", "Piece", "Refused", "Text"]


Take = Callable[["Piece | Failed"], None]


@dataclass(eq=False)
class Text:
    """One that is being written."""

    id: str
    writing: Future[None] | None = None


class Causal:
    """A model from a directory. Any thread may call it; `take` is called on that of vLLM's event loop."""

    def __init__(self, directory: str, streams: int, tensor_parallel_size: int, gpu_memory: float) -> None:
        self.counts = Counts()
        self._streams = streams
        self._open: set[str] = set()
        self._numbers = itertools.count()
        self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self._marks = marks(self._tokenizer)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        arguments = AsyncEngineArgs(
            model=directory,
            max_num_seqs=streams,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory,
        )
        self._engine = self._do(_started(arguments)).result()
        self._context = int(self._engine.model_config.max_model_len)
        # What the model's generation_config.json asks for.
        self._own = self._engine.model_config.get_diff_sampling_param()

    @classmethod
    def configured(cls, parameters: Mapping[str, str], device: str) -> Causal:
        """With the parameters of config.pbtxt; vLLM finds its GPUs itself."""
        return cls(
            parameters["directory"],
            int(parameters["streams"]),
            int(parameters["tensor_parallel_size"]),
            float(parameters["gpu_memory_utilization"]),
        )

    @property
    def open(self) -> int:
        return len(self._open)

    def begin(self, asked: Asked, take: Take) -> Text:
        """Begins a text, whose pieces `take` gets. Raises Refused and Busy."""
        try:
            if len(self._open) >= 2 * self._streams:
                raise Busy(f"{len(self._open)} texts are written or wait")
            prompt = self._prompt(asked)
        except (Busy, Refused):
            self.counts.refused += 1
            raise
        given = {"temperature": asked.temperature, "top_p": asked.top_p}
        sampling = SamplingParams(
            **self._own
            | {name: value for name, value in given.items() if value is not None}
            | {"max_tokens": min(asked.max_tokens, self._context - len(prompt)), "stop": list(asked.stop)},
            output_kind=RequestOutputKind.DELTA,
        )
        text = Text(str(next(self._numbers)))
        self._open.add(text.id)
        text.writing = self._do(self._write(text, prompt, sampling, take))
        return text

    def cancel(self, text: Text) -> bool:
        """Stops a text: vLLM drops it at its next step. False where it had ended."""
        return text.writing is not None and text.writing.cancel()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._engine.shutdown)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _do(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _write(self, text: Text, prompt: list[int], sampling: SamplingParams, take: Take) -> None:
        made = 0
        try:
            tokens = TokensPrompt(prompt_token_ids=prompt)
            async for output in self._engine.generate(tokens, sampling, text.id):
                (delta,) = output.outputs
                made += len(delta.token_ids)
                self.counts.tokens += len(delta.token_ids)
                finish = ("length" if delta.finish_reason == "length" else "stop") if output.finished else ""
                if delta.text or finish:
                    take(Piece(delta.text, finish, len(prompt), made))
            self.counts.finished += 1
        except asyncio.CancelledError:
            self.counts.cancelled += 1
            await self._engine.abort(text.id)
            self.counts.stopped_at = time.time()
            raise
        except Exception as error:
            self.counts.failed += 1
            take(Failed(str(error)))
        finally:
            self._open.discard(text.id)

    def _prompt(self, asked: Asked) -> list[int]:
        """The conversation as the model was taught to read it, and the answer that was begun."""
        messages = [{**each, "content": plain(each["content"], self._marks)} for each in asked.messages]
        chat = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        text = chat + plain(asked.prefix, self._marks)
        prompt: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if len(prompt) >= self._context:
            raise Refused(f"context length: {len(prompt)} tokens; the model reads {self._context} at most")
        return prompt


async def _started(arguments: AsyncEngineArgs) -> Any:
    """On the event loop, which the engine takes for its own."""
    return AsyncLLMEngine.from_engine_args(arguments)

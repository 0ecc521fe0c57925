"""A causal language model of Hugging Face that writes many texts at once. Nothing here knows Triton.

    model = Causal("/models/qwen", streams=16)
    text = model.begin(Asked([{"role": "user", "content": "Hello"}]), take)   # take(piece) on a thread
    model.cancel(text)

The texts share each step of the model (continuous batching of `transformers`): a text joins at the next step
and leaves at the end of the one in which it ended or was cancelled.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as library_logging

from .asked import Asked, Busy, Counts, Failed, Piece, Refused
from .pieces import Characters, Stops
from .plain import marks, plain

__all__ = ["Asked", "Busy", "Causal", "Counts", "Failed", "Piece", "Refused", "Text"]

_log = logging.getLogger("llm")

# A prompt is read in parts of so many tokens, and between them others go on and a cancel is heard.
_CPU_STEP_TOKENS = 512
_GIB = 1 << 30
_PAGE = 256
# No text of a tokenizer has more on average: a longer one is refused unread.
_CHARACTERS_PER_TOKEN = 24
# While a cancelled text has not left the batch the loop looks so often.
_LEAVING_S = 0.001
_IDLE_S = 0.1
# The pieces of one text are so far apart at least: what carries a piece costs more than to make its token.
_PACE_S = 0.01
# The nucleus holds the likeliest token whatever this says, so below 0 it holds that one alone.
_GREEDY_TOP_P = -1.0
# Below it the likeliest token is as good as certain, and a number divided by it may be too large for the
# processor: the step then fails, and with it every text of the batch.
_COLDEST = 0.01


Take = Callable[["Piece | Failed"], None]


@dataclass(eq=False)
class Text:
    """One that is being written."""

    id: str
    take: Take
    prompt: list[int]
    characters: Characters
    stops: Stops
    made: int = 0
    given_at: float = 0.0


class Causal:
    """A model from a directory. Any thread may call it; all texts' `take` are called on one thread."""

    def __init__(
        self,
        directory: str | Path,
        *,
        device: str = "cpu",
        threads: int = 2,
        streams: int = 16,
        cache_gib: float = 1.0,
    ) -> None:
        """Loads it (seconds to minutes). `streams` texts are written at once, and as many more may wait.

        On a CPU `cache_gib` bounds what is remembered of all texts together, `threads` what computes;
        a GPU gives what it has free. ValueError where the directory holds no model that can be loaded.
        """
        if not (Path(directory) / "config.json").is_file():
            raise ValueError(
                f"{directory} holds no causal model that transformers can load: it has no config.json. "
                "Name the directory of a whole model."
            )
        torch.set_num_threads(threads)
        sys.setswitchinterval(0.001)  # a cancel must not wait 5 ms for the interpreter
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
        self.streams = streams
        self.counts = Counts()
        on_gpu = device != "cpu"
        attention = "flash_attention_2" if on_gpu and is_flash_attn_2_available() else "sdpa"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self._model = AutoModelForCausalLM.from_pretrained(
                directory,
                local_files_only=True,
                attn_implementation=attention,
                dtype="auto" if on_gpu else torch.float32,
            ).to(device)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{directory} holds no causal model that transformers can load: {error}"
            ) from error
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer in {directory} has no chat template. Name an instruction-tuned model."
            )
        self._marks = marks(self._tokenizer)
        self._own = self._model.generation_config
        self._ends = _ends(self._own, self._model.config, self._tokenizer)
        config = self._model.config.get_text_config()
        self.context = int(getattr(config, "max_position_embeddings", 0) or 4096)
        blocks = None if on_gpu else _blocks(config, streams * self.context, cache_gib)
        if blocks is not None:
            self.context = min(self.context, blocks * _PAGE)
        self._batching = ContinuousBatchingConfig(
            page_size=_PAGE,
            num_blocks=blocks,
            max_batch_tokens=None if on_gpu else _CPU_STEP_TOKENS,
            max_requests_per_batch=streams,
            per_request_processors=True,
            auto_switch_to_flash=False,
        )
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: dict[str, Text] = {}
        self._leaving: dict[str, Text] = {}
        self._closed = False
        try:
            self._start()
        except (ValueError, AttributeError, NotImplementedError) as error:
            kind = self._model.config.model_type
            raise ValueError(f"transformers cannot batch a model of the kind {kind}: {error}") from error
        # What is loaded stays: a collector that looks through all of it holds up a step.
        gc.collect()
        gc.freeze()
        self._reader = threading.Thread(target=self._read, name="llm-read", daemon=True)
        self._reader.start()

    @classmethod
    def configured(cls, parameters: Mapping[str, str], device: str) -> Causal:
        """With the parameters of config.pbtxt."""
        return cls(
            parameters["directory"],
            device=device,
            threads=int(parameters["threads"]),
            streams=int(parameters["streams"]),
            cache_gib=float(parameters["cache_gib"]),
        )

    def _start(self) -> None:
        # Not the neutral values, or the library leaves the processors out. Each request has its own.
        sampling: dict[str, Any] = {"temperature": 0.5, "top_p": 0.5, "top_k": None}
        if self._own.do_sample and self._own.top_k:
            sampling["top_k"] = self._own.top_k
        general = GenerationConfig(do_sample=True, eos_token_id=self._ends or -1, **sampling)
        self._manager = self._model.init_continuous_batching(
            generation_config=general, continuous_batching_config=self._batching
        )
        self._manager.warmup()
        self._manager.start()

    @property
    def open(self) -> int:
        """Texts that are written or wait."""
        return len(self._open)

    def begin(self, asked: Asked, take: Take) -> Text:
        """Begins a text, whose pieces `take` gets until one has a `finish_reason` or is `Failed`.

        Raises Refused and Busy. Takes the milliseconds that the prompt's tokens need.
        """
        try:
            if len(self._open) >= 2 * self.streams:
                raise Busy(f"{len(self._open)} texts are written or wait")
            prompt = self._prompt(asked)
        except (Busy, Refused):
            self.counts.refused += 1
            raise
        text = Text(
            id=str(next(self._numbers)),
            take=take,
            prompt=prompt,
            characters=Characters(self._tokenizer.backend_tokenizer, prompt),
            stops=Stops(asked.stop),
        )
        with self._lock:
            self._open[text.id] = text
        self._manager.add_request(
            prompt,
            request_id=text.id,
            max_new_tokens=min(asked.max_tokens, self.context - len(prompt)),
            streaming=True,
            eos_token_id=self._ends,
            **self._sampling(asked),
        )
        return text

    def cancel(self, text: Text) -> bool:
        """Stops a text: `take` gets no more of it. False where it had ended."""
        with self._lock:
            if self._open.pop(text.id, None) is None:
                return False
            self._leaving[text.id] = text
        self._manager.cancel_request(text.id)
        self.counts.cancelled += 1
        return True

    def close(self) -> None:
        """Ends all texts and frees the model's threads."""
        self._closed = True
        self._manager.stop(hard_stop=True, timeout=10)
        self._reader.join(10)

    def _prompt(self, asked: Asked) -> list[int]:
        """The conversation as the model was taught to read it; the answer that was begun stands at its end.

        As it stood when the model wrote it: so nothing of it is written again.
        """
        size = sum(len(message["content"]) for message in asked.messages) + len(asked.prefix)
        if size > self.context * _CHARACTERS_PER_TOKEN:
            raise Refused(f"context length: {size} characters; the model reads {self.context} tokens at most")
        messages = [{**each, "content": plain(each["content"], self._marks)} for each in asked.messages]
        try:
            chat = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template raises what it likes
            raise Refused(f"the model's chat template does not take these messages: {error}") from error
        text = chat + plain(asked.prefix, self._marks)
        prompt: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if len(prompt) >= self.context:
            raise Refused(f"context length: {len(prompt)} tokens; the model reads {self.context} at most")
        return prompt

    def _sampling(self, asked: Asked) -> dict[str, float]:
        own = self._own
        temperature = asked.temperature
        if temperature is None:
            temperature = (own.temperature or 1.0) if own.do_sample else 0.0
        if temperature < _COLDEST:
            return {"temperature": 1.0, "top_p": _GREEDY_TOP_P}
        top_p = asked.top_p
        if top_p is None:
            top_p = (own.top_p or 1.0) if own.do_sample else 1.0
        return {"temperature": float(temperature), "top_p": float(top_p)}

    def _read(self) -> None:
        early: dict[str, Any] = {}
        while not self._closed:
            wait_s = _LEAVING_S if self._leaving else _PACE_S if early else _IDLE_S
            output = self._manager.get_result(timeout=wait_s)
            gone = self._gone()
            # A text's outputs hold all its tokens: the newest is enough.
            newest, early = early, {}
            while output is not None:
                newest[output.request_id] = output
                output = self._manager.get_result(timeout=0)
            now = time.monotonic()
            for name, each in newest.items():
                text = self._open.get(name)
                if text is None:
                    self._left_behind(each)
                elif each.is_finished() or now >= text.given_at + _PACE_S:
                    self._advance(text, each)
                else:
                    early[name] = each
            if gone:
                with self._lock:
                    for name in gone:
                        del self._leaving[name]
                self.counts.stopped_at = time.time()
            if not self._manager.is_running() and not self._closed:
                self._restart()

    def _advance(self, text: Text, output: Any) -> None:
        tokens = output.generated_tokens[text.made :]
        self.counts.tokens += len(tokens)
        if output.error is not None:
            self._end(text, Failed(output.error))
            return
        shown, finish = "", ""
        for token in tokens:
            text.made += 1
            if token in self._ends:
                finish = "stop"
                shown += text.stops.end()
                break
            more, stopped = text.stops.feed(text.characters.feed(token))
            shown += more
            if stopped:
                finish = "stop"
                break
        if output.is_finished() and not finish:
            finish = "length"
            shown += text.stops.end()
        piece = Piece(shown, finish, len(text.prompt), text.made)
        if finish:
            self._end(text, piece, still_runs=not output.is_finished())
        elif shown:
            self._give(text, piece)

    def _end(self, text: Text, last: Piece | Failed, *, still_runs: bool = False) -> None:
        with self._lock:
            if self._open.pop(text.id, None) is None:
                return  # it was cancelled meanwhile
            if still_runs:
                self._leaving[text.id] = text
        if still_runs:
            self._manager.cancel_request(text.id)
        if isinstance(last, Failed):
            self.counts.failed += 1
            _log.error("a text failed: %s", last)
        else:
            self.counts.finished += 1
        self._give(text, last)

    def _give(self, text: Text, piece: Piece | Failed) -> None:
        text.given_at = time.monotonic()
        try:
            text.take(piece)
        except Exception:
            _log.exception("nobody could take a piece")
            self.cancel(text)

    def _left_behind(self, output: Any) -> None:
        """What was made for a text that was cancelled."""
        leaving = self._leaving.get(output.request_id)
        if leaving is None:
            self.counts.late_tokens += 1
        else:
            made = len(output.generated_tokens)
            self.counts.tokens += made - leaving.made
            leaving.made = made
        if not output.is_finished():  # its cancel may have come before the text itself
            self._manager.cancel_request(output.request_id)

    def _gone(self) -> list[str]:
        """Cancelled texts that have left the batch: no token is made for them any more."""
        processor = self._manager.batch_processor
        if not self._leaving or processor is None or not self._manager.cancel_queue.empty():
            return []
        running, waiting = processor.scheduler.active_requests, processor.scheduler.waiting_requests
        return [each for each in list(self._leaving) if each not in running and each not in waiting]

    def _restart(self) -> None:
        """The library's loop has died: whoever waits is told, and a new one serves the next."""
        with self._lock:
            broken = list(self._open.values())
        for text in broken:
            self._end(text, Failed("the model's loop ended"))
        self._leaving.clear()
        _log.error("the loop ended and is started again")
        self._start()


def _ends(own: GenerationConfig, config: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text."""
    stated = own.eos_token_id
    if stated is None:
        stated = getattr(config, "eos_token_id", None)
    if stated is None:
        stated = tokenizer.eos_token_id
    if stated is None:
        return []
    return [stated] if isinstance(stated, int) else list(stated)


def _blocks(config: Any, tokens: int, cache_gib: float) -> int:
    """Blocks of the cache: for so many tokens, or as many as the memory holds."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * 4 * config.num_hidden_layers * heads * size
    return max(1, min(math.ceil(tokens / _PAGE), int(cache_gib * _GIB / bytes_per_token / _PAGE)))

"""What turns texts into vectors, and what ranks passages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt


class Embedder(Protocol):
    """An embedding model. Equal texts have equal vectors; the cosine of two vectors is their dot product.

    `model_id` names the model and its version: two embedders with one id give the same vectors, so
    what was indexed under it can be searched with it. `dim` is the length of a vector. A text longer
    than `max_tokens` of the model's tokens is cut there.
    """

    model_id: str
    dim: int
    max_tokens: int

    @property
    def waiting(self) -> int:
        """Batches that wait for the model here; for any thread."""
        ...

    def supports(self, text: str) -> bool:
        """Whether the model knows the language of `text`. Cheap; may be called on the event loop."""
        ...

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors of `texts` in their order: (len(texts), dim), each of length 1.

        Never on the event loop. When cancelled, batches that have not begun are dropped. Any number of
        texts; an empty one has a vector too.

        Raises `ResourceExhausted` when too much waits for the model already, `Unavailable` when it
        does not answer or is another one now.
        """
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end (characters of `text`) of each token the model sees in it, in order, uncut.

        Blocking; call it off the event loop.
        """
        ...

    async def ping(self) -> None:
        """Returns where the model answers now. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Waits for running batches and frees the model."""
        ...


class Reranker(Protocol):
    """A cross-encoder: reads question and passage together, and says how well the one answers the other."""

    @property
    def waiting(self) -> int:
        """Batches that wait for the model here; for any thread."""
        ...

    def supports(self, text: str) -> bool:
        """Whether the model knows the language of `text`. Cheap; may be called on the event loop."""
        ...

    async def score(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        """(len(passages),) from 0 to 1, in their order: larger is better. A pair that is too long is cut.

        As `Embedder.embed` otherwise: cancelled, and refused, in the same way.
        """
        ...

    async def ping(self) -> None:
        """Returns where the model answers now. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Waits for running batches and frees the model."""
        ...


class TextMessage(TypedDict):
    """`role` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextRequest:
    """What a language model is to write: the next message after `messages`.

    The text goes on after `prefix`. Temperature 0 takes the likeliest token each time; None leaves a choice
    to the model's own settings. It ends before any of `stop`, where the model ends it, or after `max_tokens`
    or what the model's context still holds.
    """

    messages: Sequence[TextMessage]
    prefix: str = ""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text to append: whole characters. The last one has a `finish_reason`, "stop" or "length".

    The counts are those so far; `version` is of the model that writes, empty where it has none.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    version: str = ""


class TextGenerator(Protocol):
    """A language model that writes many texts at once. `name` names it to people."""

    name: str

    def generate(self, request: TextRequest) -> AsyncGenerator[TextPiece, None]:
        """The pieces of a text, the last one with a `finish_reason`; without it the text is not whole.

        Closing it, and the deadline of the running RPC, stop the model's loop for this text at once.
        Raises FailedPrecondition where the model does not take the request (the context is too long),
        ResourceExhausted where it has as much to do as it may, Unavailable where it does not answer or broke.
        """
        ...

    async def ping(self) -> None:
        """Returns where the model can write now. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Lets go of what it holds. Texts that are still written break off."""
        ...

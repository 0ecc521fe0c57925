"""From tokens to text that may be shown: whole characters, and nothing of a text that ends the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

__all__ = ["Characters", "Stops"]

# As many tokens of the prompt tell a decoder whether a space belongs before the first new one.
_CONTEXT = 8


class Characters:
    """Decodes tokens as they come. Bytes of a character that is not whole yet wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(ids=list(prompt[-_CONTEXT:]), skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """What can be read now: nothing, a character, or several."""
        return self._stream.step(self._tokenizer, token) or ""


class Stops:
    """Watches for texts that end the answer; holds back what may be the beginning of one."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What may be shown now, and whether one of the texts came: it and what follows are left out."""
        if not self._stops:
            return text, False
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max(self._begun(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, False

    def end(self) -> str:
        """What was held back: the text ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _begun(self, stop: str) -> int:
        """How many characters at the end are the beginning of `stop`."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)

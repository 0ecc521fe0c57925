"""Going on with a text that was begun, where the model may repeat it first."""

from __future__ import annotations


class RepeatStripper:
    """Takes the pieces a model writes after `prefix`; leaves out `prefix` if the model writes it once more.

    Pieces are held back only as long as they could still be that repetition.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._held = ""

    def feed(self, piece: str) -> str:
        """What may be sent now; empty while it is not known."""
        if not self._prefix:
            return piece
        self._held += piece
        if len(self._held) < len(self._prefix) and self._prefix.startswith(self._held):
            return ""
        text = self._held.removeprefix(self._prefix)
        self._prefix = self._held = ""
        return text

    def end(self) -> str:
        """What is still held: the model stopped before it had repeated all of `prefix`."""
        held, self._held = self._held, ""
        return held

"""What a language model says where it does not take a request, as an error for the one who asked."""

from __future__ import annotations

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_REFUSED
from weftd.errors import FailedPrecondition

__all__ = ["refused_text"]

_REFUSED = "refused: "
_TOO_LONG = "context length: "


def refused_text(model: str, said: str) -> FailedPrecondition | None:
    """None where `said` is no refusal. The words are the model's own and quote nothing of the text."""
    _, refused, why = said.partition(_REFUSED)
    if not refused:
        return None
    _, too_long, sizes = why.partition(_TOO_LONG)
    message = (
        f"The conversation and passages are too long for this model: {sizes}. Send fewer of them."
        if too_long
        else "The model does not take this conversation. Choose another model, or ask differently."
    )
    return FailedPrecondition(ERROR_REASON_MODEL_REFUSED, message, metadata={"model_id": model})

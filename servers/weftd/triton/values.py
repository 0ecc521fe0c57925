"""Proves that values reach the models of a Triton unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from weft.v1.error_reason_pb2 import ERROR_REASON_MODEL_BROKEN
from weftd.errors import Unavailable
from weftd.inference.triton.client import Triton

__all__ = ["PROOF", "PROOF_MODEL", "prove_values"]

# A repository of its own, with one model.
PROOF: Final = Path(__file__).with_name("proof")
PROOF_MODEL: Final = "weft_proof"


async def prove_values(triton: Triton) -> None:
    """Unavailable where a model gets other values than were sent: numpy 2 does that, with no error.

    The model that says them back is there for this moment only.
    """
    text = np.array(["Weft", "织"], object)
    number = np.array([1.5, -2.0], np.float32)
    await triton.load(PROOF_MODEL)
    answer = await triton.infer(PROOF_MODEL, {"TEXT": text, "NUMBER": number})
    await triton.unload(PROOF_MODEL)
    back = [each.decode() for each in answer.outputs["TEXT_BACK"].flat]
    if back != list(text) or answer.outputs["NUMBER_BACK"].tolist() != number.tolist():
        raise Unavailable(
            ERROR_REASON_MODEL_BROKEN,
            "Triton's models read other values than they are sent. Their Python needs numpy below 2: "
            "run `make triton` again.",
        )

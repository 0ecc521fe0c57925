"""The keys that tokens are verified with."""

from __future__ import annotations

import json
from pathlib import Path

from joserfc.errors import JoseError
from joserfc.jwk import KeySet

__all__ = ["read"]


def read(file: Path) -> bytes:
    """The JSON Web Key Set in `file`. ValueError where it is none, OSError where it cannot be read.

    Judged here: beside a good key Envoy passes over a broken one without a word.
    """
    try:
        content = json.loads(file.read_bytes())
        if KeySet.import_key_set(content).keys:
            return json.dumps({"keys": content["keys"]}).encode()
    except (JoseError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f'{file} is no JSON Web Key Set: it needs {{"keys": [...]}}, one key or more, all sound.'
    )

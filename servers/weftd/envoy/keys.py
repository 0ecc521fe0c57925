"""The keys that tokens are verified with."""

from __future__ import annotations

import base64
import json
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from weftd.envoy.config import EnvoyConfig

__all__ = ["read"]


def read(config: EnvoyConfig) -> bytes:
    """A JSON Web Key Set of all of them. ValueError where there is none or the file is no key set, OSError
    where it cannot be read."""
    keys = [] if config.secret is None else [_symmetric(config.secret)]
    if config.jwks_file is not None:
        keys += _of_file(config)
    if not keys:
        raise ValueError("Tokens cannot be verified: set a secret or a JWKS file.")
    return json.dumps({"keys": keys}).encode()


def _symmetric(secret: str) -> dict[str, Any]:
    value = base64.urlsafe_b64encode(secret.encode()).decode().rstrip("=")
    return {"kty": "oct", "alg": "HS256", "k": value}


def _of_file(config: EnvoyConfig) -> list[dict[str, Any]]:
    """Judged here: beside a good key Envoy passes over a broken one without a word."""
    assert config.jwks_file is not None
    try:
        content = json.loads(config.jwks_file.read_bytes())
        if KeySet.import_key_set(content).keys:
            return list(content["keys"])
    except (JoseError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(
        f'{config.jwks_file} is no JSON Web Key Set: it needs {{"keys": [...]}}, one key or more, all sound.'
    )

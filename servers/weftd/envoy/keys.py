"""The keys that tokens are verified with."""

from __future__ import annotations

import base64
import json
from typing import Any

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
    assert config.jwks_file is not None
    try:
        keys = json.loads(config.jwks_file.read_bytes())["keys"]
        sound = isinstance(keys, list) and keys and all(isinstance(k, dict) and "kty" in k for k in keys)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(
            f'{config.jwks_file} is no JSON Web Key Set: it needs {{"keys": [...]}} with at least one key.'
        )
    return list(keys)

"""The key that signs and verifies tokens where the operator names no file of keys."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path

__all__ = ["ensure_keys"]


def ensure_keys(path: Path) -> None:
    """Writes a JWKS file with one random HS256 key, readable by its owner alone, unless there is one."""
    if path.exists():
        return
    key = {
        "kty": "oct",
        "kid": secrets.token_hex(4),
        "alg": "HS256",
        "use": "sig",
        "k": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("="),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"keys": [key]}, file)
    try:
        os.link(staged, path)  # unlike a rename, it never replaces a key that another process made meanwhile
    except FileExistsError:
        pass
    finally:
        staged.unlink()

"""Ids that clients choose or get, and the tokens of pages."""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
from typing import Any

from weftd.errors import InvalidArgument

__all__ = ["check_dataset_id", "new_dataset_id", "page_size", "page_token", "read_page_token"]

# "." and ".." would be taken out of a REST path on its way.
_DATASET_ID = re.compile(r"[A-Za-z0-9_\-:@][A-Za-z0-9_\-.:@]{0,127}")
_DEFAULT_PAGE = 20
_LARGEST_PAGE = 100


def check_dataset_id(dataset_id: str) -> None:
    """InvalidArgument for what no dataset can be called."""
    if not _DATASET_ID.fullmatch(dataset_id):
        raise InvalidArgument(
            {"dataset_id": "must be 1 to 128 of letters, digits and `_ - . : @`, a dot not first"}
        )


def new_dataset_id() -> str:
    return f"ds_{secrets.token_hex(8)}"


def page_size(asked: int) -> int:
    """InvalidArgument above 100; 0 means 20."""
    if asked > _LARGEST_PAGE:
        raise InvalidArgument({"page_size": f"must be at most {_LARGEST_PAGE}"})
    return asked or _DEFAULT_PAGE


def page_token(*key: int | str) -> str:
    """The key of a page's last item, for the client to hand back."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def read_page_token(token: str, *kinds: type[int] | type[str]) -> tuple[Any, ...] | None:
    """The key in a token of ours, None for an empty one; InvalidArgument for any other."""
    if not token:
        return None
    try:
        key = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError):
        key = None
    if (
        not isinstance(key, list)
        or [type(part) for part in key] != list(kinds)
        or any(isinstance(part, int) and not 0 <= part < 1 << 62 for part in key)
        or any(isinstance(part, str) and not part.isprintable() for part in key)
    ):
        raise InvalidArgument({"page_token": "is not one of ours: use `next_page_token` as it came"})
    return tuple(key)

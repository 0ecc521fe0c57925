"""Writes what `render` made into the directory that Envoy watches: whole files, one rename each."""

from __future__ import annotations

import os
from pathlib import Path

from weftd.envoy.template import BOOTSTRAP, Rendered

__all__ = ["write"]


def write(directory: Path, rendered: Rendered, *, before: Rendered | None = None) -> set[str]:
    """Writes what differs from `before` (None: everything); the names of the resources that did.

    Files that neither names are removed. All are readable by their owner only: the keys may be secret.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in rendered.blobs.items():
        if before is None or name not in before.blobs:
            _replace(directory / name, content)
    if before is None:
        _replace(directory / BOOTSTRAP, rendered.bootstrap)
    changed = {
        name
        for name in rendered.resources
        if before is None or before.resources[name] != rendered.resources[name]
    }
    for name in rendered.resources:
        if name in changed:
            _replace(directory / name, rendered.resources[name])
    kept = {*rendered.blobs, *(before.blobs if before else ())}
    for pattern in ("contract-*", "jwks-*"):
        for path in directory.glob(pattern):
            if path.name not in kept:
                path.unlink()
    return changed


def _replace(path: Path, content: bytes) -> None:
    """Envoy reads a file when one is moved over it, so it never sees half of one."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    fresh.replace(path)

"""Blobs as files below one directory.

    incoming/<tenant>.<key>    being written; its writer holds a lock on it as long as it lives
    kept/<tenant>/<key>        published; its companion beside it as <key>.companion

`<tenant>` is a hash of the tenant's name. Several processes may share the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["DirectoryBlobs"]

_KEY = re.compile(r"[0-9a-f]{32}")
_COMPANION = ".companion"


class DirectoryBlobs:
    """The port `Blobs` on a local or shared file system."""

    def __init__(self, root: Path) -> None:
        self._incoming = root / "incoming"
        self._kept = root / "kept"
        for directory in (self._incoming, self._kept):
            directory.mkdir(parents=True, exist_ok=True)

    def create(self, tenant: str, *, of: str = "") -> _FileWriter:
        key = secrets.token_hex(16)
        target = self._kept / _folder(tenant) / (f"{_checked(of)}{_COMPANION}" if of else key)
        return _FileWriter(key, self._incoming / f"{_folder(tenant)}.{key}", target)

    @contextlib.contextmanager
    def open(self, tenant: str, key: str, *, companion: bool = False) -> Iterator[Path]:
        path = self._path(tenant, key, companion)
        if not companion and not path.exists():
            waiting = self._incoming / f"{_folder(tenant)}.{key}"
            path = waiting if waiting.exists() else path  # it may have been published just now
        if not path.exists():
            raise FileNotFoundError(f"There is no blob {key}.")
        yield path

    def delete(self, tenant: str, key: str, *, companion_only: bool = False) -> None:
        self._path(tenant, key, True).unlink(missing_ok=True)
        if not companion_only:
            self._path(tenant, key, False).unlink(missing_ok=True)

    def recover(self, is_known: Callable[[str], bool]) -> None:
        for path in self._incoming.iterdir():
            folder, _, key = path.name.partition(".")
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # its writer lives
                if is_known(key):
                    _move(path, self._kept / folder / key)
                else:
                    path.unlink()

    def _path(self, tenant: str, key: str, companion: bool) -> Path:
        return self._kept / _folder(tenant) / (_checked(key) + (_COMPANION if companion else ""))


class _FileWriter:
    """The port `BlobWriter`: a file that is moved into its place."""

    def __init__(self, key: str, path: Path, target: Path) -> None:
        self.key = key
        self._path = path
        self._target = target
        self._file = path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._settled = False

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def publish(self) -> None:
        _move(self._path, self._target)
        self._settled = True
        self._file.close()

    def abort(self) -> None:
        if not self._settled:
            self._settled = True
            self._path.unlink(missing_ok=True)
            self._file.close()


def _folder(tenant: str) -> str:
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError("This is no key of a blob.")
    return key


def _move(source: Path, target: Path) -> None:
    if not target.parent.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _sync_directory(target.parent.parent)
    source.replace(target)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

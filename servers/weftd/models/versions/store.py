"""Where the versions of the models lie: a directory, or an object store, behind fsspec.

    ROOT/MODEL/config.pbtxt    names the version that is served
    ROOT/MODEL/N/…             the versions that are kept
    ROOT/MODEL--check-ID/…     one that is being checked

Everything blocks: call it on threads. Unavailable where the store does not answer or is full.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd.errors import Unavailable

__all__ = ["CHECK", "CONFIG_FILE", "VersionStore", "is_check"]

CONFIG_FILE: Final = "config.pbtxt"
CHECK: Final = "--check-"
"""Between a model's name and an id: the name under which a version of it is checked."""

_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def is_check(model: str) -> bool:
    """Whether it is no model but one that is being checked."""
    return CHECK in model


class VersionStore:
    """Triton's model repository at `url`: a directory, "s3://bucket/path", or another object store.

    fsspec has to know it. ValueError for a url that cannot be used, with what to do.
    """

    def __init__(self, url: str) -> None:
        try:
            # No cache: Triton and other processes see the same store.
            found, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise ValueError(f"{url.split('://')[0]}:// needs a library that is missing: {error}.") from None
        self._files: Any = found
        self._root = root.rstrip("/")
        self._is_local = isinstance(found, LocalFileSystem)

    def models(self) -> list[str]:
        """Those that have a configuration, by name; what is being checked is among them."""
        with _answering():
            names = self._names("")
            return sorted(name for name in names if self._files.exists(self._at(name, CONFIG_FILE)))

    def versions(self, model: str) -> list[int]:
        """The numbers of the versions that lie there, the newest first."""
        with _answering():
            return sorted(map(int, filter(_VERSION.fullmatch, self._names(model))), reverse=True)

    def is_file(self, model: str, *path: str) -> bool:
        """Whether a file of a model is there."""
        with _answering():
            return bool(self._files.isfile(self._at(model, *path)))

    def read(self, model: str, *path: str) -> bytes | None:
        """A small file of a model; None where there is none."""
        with _answering():
            try:
                content: bytes = self._files.cat_file(self._at(model, *path))
            except FileNotFoundError:
                return None
            return content

    def write(self, model: str, content: bytes, *path: str) -> None:
        """Writes a small file of a model as a whole: whoever reads it sees the one before or this one."""
        target = self._at(model, *path)
        with _answering():
            if not self._is_local:
                self._files.pipe_file(target, content)
                return
            new = Path(f"{target}.new")
            new.parent.mkdir(parents=True, exist_ok=True)
            with new.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
            _sync(new.parent)

    def put(self, directory: Path, model: str, version: int) -> None:
        """Moves a directory of this machine there; on the same file system it is renamed."""
        target = self._at(model, str(version))
        with _answering():
            if self._is_local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(directory, target)
                return
            for file in sorted(path for path in directory.rglob("*") if path.is_file()):
                self._files.put_file(str(file), f"{target}/{file.relative_to(directory).as_posix()}")
            shutil.rmtree(directory)

    def copy(self, model: str, version: int, to_model: str, to_version: int) -> int:
        """Copies a version, all its files; their size in bytes."""
        source, target = self._at(model, str(version)), self._at(to_model, str(to_version))
        with _answering():
            return self._copy(source, target)

    def move(self, model: str, version: int, to_model: str) -> None:
        """Moves a version to another model: renamed in a directory, file by file in an object store."""
        source, target = self._at(model, str(version)), self._at(to_model, str(version))
        with _answering():
            if self._is_local:
                Path(source).rename(target)
                _sync(Path(target).parent)
                return
            self._copy(source, target)
            self._files.rm(source, recursive=True)

    def size(self, model: str, version: int) -> int:
        """Of a version's files, in bytes."""
        with _answering():
            found = self._files.find(self._at(model, str(version)), detail=True)
            return sum(int(each["size"]) for each in found.values())

    def remove(self, model: str, *path: str) -> None:
        """Removes a file or directory of a model, or all of it; nothing where there is none."""
        with _answering(), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(model, *path), recursive=True)

    def _copy(self, source: str, target: str) -> int:
        size = 0
        for path, info in self._files.find(source, detail=True).items():
            copy = target + path[len(source) :]
            if self._is_local:
                Path(copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)  # with its mode
            else:
                self._files.cp_file(path, copy)
            size += int(info["size"])
        return size

    def _names(self, *path: str) -> list[str]:
        try:
            listed = self._files.ls(self._at(*filter(None, path)), detail=True)
        except FileNotFoundError:
            return []
        return [each["name"].rstrip("/").rpartition("/")[2] for each in listed if each["type"] == "directory"]

    def _at(self, *path: str) -> str:
        return "/".join((self._root, *path))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries of object stores have errors of their own
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Unavailable(
            ERROR_REASON_BACKEND_UNAVAILABLE,
            f"The model repository cannot be used now ({why}). Try again later, or have it looked at.",
            metadata={"backend": "model repository"},
        ) from error

"""A version's directory, from the tar file that was sent."""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, cast

from weftd.models.versions.refusal import VersionRefused

__all__ = ["ArchiveLimits", "unpack"]

_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_CHUNK: Final = 1 << 20
_NAME_BYTES: Final = 255
_DEPTH: Final = 16
# `tarfile` takes headers into memory, and keeps some of them.
_HEADER_BYTES: Final = 2_048
"""For each entry on average: long names in every script."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Of one version: bytes of its files, sent and unpacked, and how many files and directories."""

    bytes: int = 64 << 30
    entries: int = 10_000


def unpack(archive: Path, directory: Path, limits: ArchiveLimits, reserved: str = "") -> int:
    """Writes the archive's files into `directory`, which it makes; their size in bytes.

    Only plain files and directories are taken, each once, by names that lead nowhere else; no other bits of
    their modes than the owner's x. The files are on disk when it returns. VersionRefused says what is wrong;
    then `directory` holds part of it. `reserved` is a name at the top that no file may have.
    """
    directory.mkdir()
    with archive.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise VersionRefused("nothing was sent")
        try:
            headers = _Headers(file, limits.entries * _HEADER_BYTES)
            with tarfile.open(fileobj=cast("Any", headers), mode="r:", errorlevel=2) as tar:
                size = _members(tar, file, directory, limits, reserved)
                ends = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, VersionRefused):
                raise
            raise VersionRefused(f"what was sent is no whole tar file ({str(error)[:100]})") from None
        file.seek(ends)
        if file.read(len(_END)) != _END:
            raise VersionRefused("the tar file is cut off: its end is missing")
    return size


class _Headers:
    """A file of which no more than `limit` bytes are read in all, whatever a header says."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise VersionRefused("the headers of the tar file are too long")
        self._left -= size
        return self._file.read(size)


def _members(
    tar: tarfile.TarFile, file: IO[bytes], directory: Path, limits: ArchiveLimits, reserved: str
) -> int:
    size = 0
    seen: set[PurePosixPath] = set()
    for number, member in enumerate(tar):
        if number >= limits.entries:
            raise VersionRefused(f"it has more than {limits.entries:,} files and directories")
        path = _path(member.name)
        if member.isdir():
            if path in seen and not (directory / path).is_dir():
                raise VersionRefused(f"{_shown(path)} is in the archive twice")
            seen.add(path)
            (directory / path).mkdir(parents=True, exist_ok=True)
            continue
        if not member.isreg() or member.issparse():
            raise VersionRefused(f"{_shown(path)} is {_kind(member)}; only files and directories are taken")
        if path in seen or not path.parts:
            raise VersionRefused(f"{_shown(path)} is in the archive twice")
        if str(path) == reserved:
            raise VersionRefused(f"{reserved} is a name that Weft uses: give the file another")
        seen.add(path)
        size += member.size
        if size > limits.bytes:
            raise VersionRefused(f"its files have more than {limits.bytes:,} bytes")
        _write(file, member, directory / path)
    if not size:
        raise VersionRefused("the archive is empty")
    return size


def _path(name: str) -> PurePosixPath:
    """Where a member belongs. PurePosixPath drops `.` and double slashes, but never `..`."""
    if name.startswith("/"):
        raise VersionRefused(f"{_shown(name)} is an absolute name")
    path = PurePosixPath(name)
    if ".." in path.parts:
        raise VersionRefused(f"{_shown(name)} leads out of the version's directory")
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts) or len(path.parts) > _DEPTH:
        raise VersionRefused(f"{_shown(name)} is too long or too deep a name")
    if not name.isprintable():
        raise VersionRefused(f"{_shown(name)} has characters that cannot be printed")
    return path


def _write(source: IO[bytes], member: tarfile.TarInfo, path: Path) -> None:
    mode = 0o755 if member.mode & 0o100 else 0o644
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    except (FileExistsError, NotADirectoryError):
        raise VersionRefused(f"{_shown(member.name)} is in the archive twice") from None
    source.seek(member.offset_data)
    with os.fdopen(descriptor, "wb") as target:
        left = member.size
        while left > 0 and (chunk := source.read(min(_CHUNK, left))):
            target.write(chunk)
            left -= len(chunk)
        if left:
            raise VersionRefused(f"the tar file is cut off in {_shown(member.name)}")
        target.flush()
        os.fsync(descriptor)


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if member.isdev():
        return "a device"
    return "no plain file"


def _shown(name: str | PurePosixPath) -> str:
    return repr(str(name)[:100])

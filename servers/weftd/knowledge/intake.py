"""The files of one upload, on their way to the disk. Everything here blocks: it runs on a thread."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from weft.v1 import error_reason_pb2
from weft.v1.error_reason_pb2 import ErrorReason
from weftd.errors import InvalidArgument, reason_name
from weftd.knowledge.filenames import clean_name
from weftd.stores.blobs.port import Blobs, BlobWriter

__all__ = ["IncomingFile", "Intake", "UploadLimits"]

_NAME_LIMIT = 255


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """`file_bytes`: the largest file. `files`: how many in one upload. `uploads`: how many at once, and
    `tenant_uploads` of one tenant."""

    file_bytes: int = 200 << 20
    files: int = 100
    uploads: int = 32
    tenant_uploads: int = 8


@dataclass(slots=True)
class IncomingFile:
    """One file. `refusal` is (reason, message); `writer` is None where it was refused."""

    name: str
    size: int = 0
    sha256: str = ""
    refusal: tuple[str, str] | None = None
    writer: BlobWriter | None = None
    hash: Any = field(default_factory=hashlib.sha256)


class Intake:
    """Takes files one after the other; what it wrote is on disk once the file's `end_file` returned.

    A refused file does not stop the others: the rest of its bytes are dropped.
    """

    def __init__(self, blobs: Blobs, tenant: str, limits: UploadLimits) -> None:
        self.files: list[IncomingFile] = []
        self._blobs = blobs
        self._tenant = tenant
        self._limits = limits
        self._current: IncomingFile | None = None

    def begin_file(self, name: str) -> None:
        """InvalidArgument where there are more files than one upload may bring."""
        if len(self.files) == self._limits.files:
            most = f"more than {self._limits.files} files: send the rest in another upload"
            raise InvalidArgument({"file": most})
        self._current = file = IncomingFile(clean_name(name))
        self.files.append(file)
        if not file.name:
            refusal = "The file has no name. Send it with one: its ending tells the format."
            self._refuse(file, error_reason_pb2.ERROR_REASON_INVALID_FIELD, refusal)
        elif len(file.name) > _NAME_LIMIT:
            file.name = file.name[:_NAME_LIMIT]
            refusal = f"The file's name has more than {_NAME_LIMIT} characters. Shorten it."
            self._refuse(file, error_reason_pb2.ERROR_REASON_INVALID_FIELD, refusal)
        else:
            file.writer = self._blobs.create(self._tenant)

    def data(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""
        file = self._current
        if file is None:
            raise InvalidArgument({"data": "came before the header of its file"})
        file.size += len(data)
        if file.writer is None:
            return
        if file.size > self._limits.file_bytes:
            limit = self._limits.file_bytes / (1 << 20)
            self._refuse(
                file,
                error_reason_pb2.ERROR_REASON_DOCUMENT_TOO_LARGE,
                f"The file is larger than {limit:g} MiB. Split it, or have the limit raised.",
            )
            return
        file.hash.update(data)
        file.writer.write(data)

    def end_file(self) -> None:
        """The file is whole. Does nothing where none was begun."""
        file, self._current = self._current, None
        if file is None or file.writer is None:
            return
        if not file.size:
            self._refuse(
                file,
                error_reason_pb2.ERROR_REASON_DOCUMENT_EMPTY,
                "The file has no bytes. Look whether it was saved, then send it again.",
            )
            return
        file.writer.sync()
        file.sha256 = file.hash.hexdigest()

    def abort(self) -> None:
        """Removes all that was not published."""
        for file in self.files:
            if file.writer is not None:
                file.writer.abort()

    def _refuse(self, file: IncomingFile, reason: ErrorReason.ValueType, message: str) -> None:
        file.refusal = (reason_name(reason), message)
        if file.writer is not None:
            file.writer.abort()
            file.writer = None

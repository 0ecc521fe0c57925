"""Where the bytes of uploaded files are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class BlobWriter(Protocol):
    """A blob that is being written. One thread at a time; every call blocks.

    It exists for others from `publish` on. One that was neither published nor aborted, because its
    process died, is settled by `Blobs.recover`.
    """

    @property
    def key(self) -> str:
        """Its name within the tenant: made at random, unlike any other."""
        ...

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`. OSError when the disk is full."""
        ...

    def sync(self) -> None:
        """All that was written is on the disk itself when this returns; nothing may be written after."""
        ...

    def publish(self) -> None:
        """Puts the blob in its place. Call `sync` first."""
        ...

    def abort(self) -> None:
        """Removes what was written. Does nothing after `publish`."""
        ...


class Blobs(Protocol):
    """Blobs by tenant and key. Every method blocks: call it off the event loop.

    A tenant's name is untrusted text: no adapter may use it as (part of) a path. A tenant sees only its
    own. `of`, the key of another blob, makes a companion of it: data derived from it, one of each blob.
    """

    def create(self, tenant: str, *, of: str = "") -> BlobWriter:
        """Begins a blob, or the companion of one; publishing replaces an older companion."""
        ...

    def open(self, tenant: str, key: str, *, companion: bool = False) -> AbstractContextManager[Path]:
        """A local file of its bytes, to be read within the context. FileNotFoundError without one.

        A blob can be read once it was synced, published or not.
        """
        ...

    def delete(self, tenant: str, key: str, *, companion_only: bool = False) -> None:
        """Removes the blob and its companion. None there is no error."""
        ...

    def recover(self, is_known: Callable[[str], bool]) -> None:
        """Settles what dead processes left unpublished: the known keys are published, others removed."""
        ...

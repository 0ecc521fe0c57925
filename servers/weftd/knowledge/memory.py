"""How the C library gives memory back."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["return_large_blocks"]

# Parameters of glibc's mallopt, and its own first value for both.
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_LARGE_BYTES = 128 << 10


def return_large_blocks() -> None:
    """Has every block of 128 KiB or more go back to the system when it is freed.

    glibc raises that limit by itself once large blocks come and go. Pieces of an upload then share its
    heaps with what lives longer, and a 60 MB upload leaves 30 to 70 MB behind (measured; so, about 10).
    Does nothing under another C library.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
            mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)

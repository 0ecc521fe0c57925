"""Holds a data directory for one program at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from weftd.compose import CannotStart, plainly

__all__ = ["alone"]


@contextlib.contextmanager
def alone(data: Path, name: str, what: str) -> Iterator[IO[str]]:
    """Holds `name`.lock in `data`; the kernel lets it go with the process, however that ends.

    Its first line is the process that holds it; the holder may write more. CannotStart where another
    process has it: `what` says who that is ("Weft", "The job process").
    """
    with plainly():
        lock = (data / f"{name}.lock").open("a+")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise CannotStart(
                f"{what} runs already on {data.absolute()} (process {file.readline().strip() or 'unknown'}). "
                "Stop that one, or choose another directory with WEFT_DATA."
            ) from None
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        yield file

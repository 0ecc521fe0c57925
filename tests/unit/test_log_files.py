"""A log file is cut while its writer goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from weftd.log_files import keep_small


async def test_a_large_file_is_set_aside_and_written_on(tmp_path: Path) -> None:
    file, small, missing = (tmp_path / name for name in ("large.log", "small.log", "missing.log"))
    small.write_text("few words\n")
    with file.open("ab", buffering=0) as writer:
        writer.write(b"one\n" * 100)
        keeping = asyncio.create_task(keep_small([missing, file, small], limit_bytes=100))
        async with asyncio.timeout(10):
            while file.stat().st_size:
                await asyncio.sleep(0.01)
        writer.write(b"two\n")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
    assert file.read_text() == "two\n"
    assert (tmp_path / "large.log.1").read_text() == "one\n" * 100
    assert names(tmp_path) == {"large.log", "large.log.1", "small.log"}


def names(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}

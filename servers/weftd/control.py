"""`weft restart` asks the supervisors of a data directory, over unix sockets that only their user may open.

The socket is in a directory of its own (a path of one has at most 107 characters); the supervisor's lock
file names it. What the supervisor does comes back as lines of text; the last one begins with ✓ or ✗.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import IO

from weftd.compose import CannotStart
from weftd.supervisor import ChildFailed

__all__ = ["ask", "serve_control"]

_DONE, _FAILED = "✓", "✗"


async def serve_control(lock: IO[str], restart: Callable[[Callable[[str], None]], Awaitable[None]]) -> None:
    """Restarts whenever someone asks; ends only when cancelled. `restart` gets what tells him how far it is.

    A restart that has begun goes on when he leaves.
    """

    restarting = asyncio.Lock()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def tell(line: str) -> None:
            if not writer.is_closing():
                writer.write(f"{line}\n".encode())

        try:
            tell("Another restart runs: this one waits for it." if restarting.locked() else "Restarting …")
            async with restarting:
                if reader.at_eof():
                    return  # he left while another's restart ran
                await restart(lambda name: tell(f"  {name}"))
            tell(f"{_DONE} Restarted.")
        except (ChildFailed, CannotStart) as error:
            tell(f"{_FAILED} {' '.join(str(error).removeprefix(_FAILED).split())}")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    with tempfile.TemporaryDirectory(prefix="weft-") as private:
        async with asyncio.TaskGroup() as group:
            path = Path(private) / "control.sock"
            server = await asyncio.start_unix_server(lambda r, w: group.create_task(answer(r, w)), path)
            print(path, file=lock, flush=True)
            async with server:
                await server.serve_forever()


async def ask(data: Path) -> AsyncIterator[str]:
    """Has every supervisor of `data` restart its workers, one after the other; yields what they say.

    CannotStart where there is none, and where one did not go through with it.
    """
    found = False
    for path in await asyncio.to_thread(_sockets, data):
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError:
            continue  # it has ended
        found = True
        async with aclosing(_answer(reader, writer)) as said:
            async for line in said:
                yield line
    if not found:
        raise CannotStart(
            f"Nothing that can restart its processes runs on {data}, or it is still starting. There are "
            "`weft up` and `weft serve … --workers N`; WEFT_DATA names another directory."
        )


def _sockets(data: Path) -> list[str]:
    locks = sorted(data.glob("*.lock"))
    contents = [file.read_text(encoding="utf-8", errors="replace").splitlines() for file in locks]
    return [lines[1] for lines in contents if len(lines) > 1]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncGenerator[str, None]:
    last = ""
    try:
        async for line in reader:
            last = line.decode().rstrip()
            if last.startswith(_FAILED):
                raise CannotStart(last.removeprefix(_FAILED).strip())
            yield last
    finally:
        writer.close()
    if not last.startswith(_DONE):
        raise CannotStart("The supervisor ended before it had restarted everything: see its log.")

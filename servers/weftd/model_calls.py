"""What `weft models` asks of a mesh."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import grpc
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from weft.connection import Connection, Outcome, new_id
from weft.errors import from_rpc
from weft.v1 import models_pb2 as pb
from weft.v1 import models_pb2_grpc
from weftd.load.command import operator_token
from weftd.settings import Settings

__all__ = ["list_versions", "publish", "rollback", "watch"]

_PIECE_BYTES: Final = 1 << 20
_WAITING_PIECES: Final = 4
_UNARY_LIMIT_S: Final = 30.0
# A version is loaded twice before it serves.
_LOAD_LIMIT_S: Final = 1200.0
_WATCH_AGAIN_S: Final = 1.0


@asynccontextmanager
async def _connected(address: str | None) -> AsyncIterator[tuple[Connection, Any]]:
    """A stub; what fails is raised as `weft.errors`. CannotStart where there is no token."""
    where = address or f"127.0.0.1:{Settings().port}"
    connection = Connection(where, operator_token("models"), tls=False, root_certificates=None)
    try:
        yield connection, models_pb2_grpc.ModelServiceStub(connection.channel)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, connection.address) from None
    finally:
        await connection.close()


async def list_versions(address: str | None) -> pb.ListModelVersionsResponse:
    async with _connected(address) as (connection, stub):
        request = pb.ListModelVersionsRequest()
        answer = await connection.unary(stub.ListModelVersions, request, timeout_s=_UNARY_LIMIT_S)
        return cast("pb.ListModelVersionsResponse", answer)


async def rollback(model: str, version: int, address: str | None) -> pb.RollbackModelResponse:
    """Not tried again by itself: a second one would go back further."""
    async with _connected(address) as (connection, stub):
        request = pb.RollbackModelRequest(model=model, version=version)
        metadata = await connection.metadata(new_id())
        answer = await stub.RollbackModel(request, metadata=metadata, timeout=_LOAD_LIMIT_S)
        return cast("pb.RollbackModelResponse", answer)


async def watch(address: str | None, show: Callable[[str], None]) -> None:
    """Until it is cancelled, or the mesh does not answer.

    The edge ends a stream on which nothing has come for 300 s; of the next one only changes are shown.
    """
    known: dict[str, str] = {}
    async with _connected(address) as (connection, stub):
        while True:
            began = False
            call = stub.WatchModels(pb.WatchModelsRequest(), metadata=await connection.metadata(new_id()))
            try:
                async for event in call:
                    began = True
                    served = event.type == "served"
                    what = f"version {event.version} serves" if served else f"is gone: {event.reason}"
                    if known.get(event.model) != what:
                        show(f"{event.model} {what}")
                    known[event.model] = what
            except grpc.aio.AioRpcError:
                if not began:
                    raise
            await asyncio.sleep(_WATCH_AGAIN_S)


async def publish(
    model: str, directory: Path, address: str | None, console: Console
) -> pb.PublishModelResponse:
    """Sends `directory`, with a progress bar where `console` is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    size = await asyncio.to_thread(_size, directory)
    async with _connected(address) as (connection, stub):
        metadata = await connection.metadata(new_id())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("sending", total=size)

            async def messages() -> AsyncGenerator[pb.PublishModelRequest, None]:
                yield pb.PublishModelRequest(model=model)
                async with aclosing(_archive(directory)) as pieces:
                    async for piece in pieces:
                        yield pb.PublishModelRequest(data=piece)
                        progress.advance(task, len(piece))
                progress.update(task, description="checking", total=None)

            call = stub.PublishModel(metadata=metadata)
            outcome = Outcome(call)
            try:
                async with aclosing(messages()) as sent:
                    async for message in sent:
                        await call.write(message)
                await call.done_writing()
                return cast("pb.PublishModelResponse", await call)
            except asyncio.InvalidStateError:  # it was answered before all was sent
                return cast("pb.PublishModelResponse", await call)
            except grpc.aio.AioRpcError as error:
                raise outcome.error(error) from None
            finally:
                call.cancel()


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


async def _archive(directory: Path) -> AsyncGenerator[bytes, None]:
    """A tar file of what is in `directory`, made on a thread as it is read; of links what they lead to.

    OSError where a file cannot be read.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_WAITING_PIECES)
    stopped = False

    class Pipe:
        def write(self, data: bytes) -> int:
            if stopped:
                raise BrokenPipeError
            asyncio.run_coroutine_threadsafe(pieces.put(bytes(data)), loop).result()
            return len(data)

    def make() -> None:
        pipe = cast("Any", Pipe())
        with tarfile.open(fileobj=pipe, mode="w|", bufsize=_PIECE_BYTES, dereference=True) as tar:
            for path in sorted(directory.iterdir()):
                tar.add(path, path.name, filter=_plain)

    async def end() -> None:
        try:
            await asyncio.to_thread(make)
        finally:
            await pieces.put(None)

    making = asyncio.create_task(end())
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        await making
    finally:
        stopped = True
        while not making.done():
            while not pieces.empty():
                pieces.get_nowait()
            await asyncio.wait([making], timeout=0.05)
        if not making.cancelled():
            making.exception()


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Who owns the files, and what Python compiled of them, is nobody's business."""
    if "__pycache__" in Path(member.name).parts:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member

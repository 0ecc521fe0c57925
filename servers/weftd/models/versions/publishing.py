"""Publishes versions of the models that Triton serves, and goes back to older ones.

A version is unpacked beside the repository, put there under another name and tried out, then renamed to
its place, then named in the model's configuration, and then loaded. Whatever ends this in between, the
version that was named before is served; what is left is swept before the next publish of that model.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

import structlog

from weft.v1 import models_pb2 as pb
from weft.v1.error_reason_pb2 import (
    ERROR_REASON_BACKEND_UNAVAILABLE,
    ERROR_REASON_MODEL_NOT_FOUND,
    ERROR_REASON_OVERLOADED,
)
from weftd.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable, WeftError
from weftd.inference.triton.client import Triton
from weftd.models.versions import model_config
from weftd.models.versions.archive import ArchiveLimits, unpack
from weftd.models.versions.canary import CANARY_FILE, read_canary
from weftd.models.versions.model_config import CHECK_FILE, Config
from weftd.models.versions.refusal import VersionRefused, refused
from weftd.models.versions.served import served_versions, watch
from weftd.models.versions.spool import sent_in_time, spool
from weftd.models.versions.store import CHECK, CONFIG_FILE, VersionStore, is_check
from weftd.models.versions.trial import Trial, TrialLimits
from weftd.rpc.drain import Drain
from weftd.rpc.incoming import on_thread

__all__ = ["KEPT", "Publishing"]

KEPT: Final = 5
"""Versions of a model that are kept, the served one among them."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
# Of the files that are read here.
_SMALL_BYTES: Final = 1 << 20
_MAX_WATCHERS: Final = 100
_IN_USE: Final = ("READY", "LOADING", "UNLOADING")

log = structlog.get_logger()


class Publishing:
    """One publish of a model at a time, over all processes that share `work`, a directory of this machine.

    `work` should lie on the file system of a repository that is a directory: then versions are renamed there.
    """

    def __init__(
        self,
        triton: Triton,
        store: VersionStore,
        work: Path,
        drain: Drain,
        *,
        archive_limits: ArchiveLimits | None = None,
        trial_limits: TrialLimits | None = None,
    ) -> None:
        self._triton = triton
        self._store = store
        self._work = work
        self._drain = drain
        self._watchers = asyncio.Semaphore(_MAX_WATCHERS)
        self._limits = archive_limits or ArchiveLimits()
        self._trial = Trial(triton, store, trial_limits or TrialLimits())

    async def publish(self, messages: AsyncIterable[pb.PublishModelRequest]) -> pb.PublishModelResponse:
        """See `ModelService.PublishModel`."""
        incoming = sent_in_time(messages)
        try:
            first = await anext(incoming, None)
        except VersionRefused:
            first = None  # nothing came in time
        model = _checked_name(first.model if first else "")
        began_s = time.monotonic()
        async with self._alone(model) as work:
            before = await self._config(model)
            await spool(_with_first(first, incoming), work / "sent.tar", self._limits.bytes)
            directory = work / "version"
            size = await on_thread(unpack, work / "sent.tar", directory, self._limits, reserved=CHECK_FILE)
            config = await on_thread(_sent_config, directory, before, model)
            version = await self._put_in_place(
                model, before, config, lambda name, number: self._store.put(directory, name, number)
            )
        log.info(
            "model published", model=model, version=version, bytes=size, seconds=time.monotonic() - began_s
        )
        return pb.PublishModelResponse(model=model, version=version, bytes=size)

    async def rollback(self, request: pb.RollbackModelRequest) -> pb.RollbackModelResponse:
        """See `ModelService.RollbackModel`."""
        model = _checked_name(request.model)
        async with self._alone(model):
            before = await self._config(model)
            kept = await on_thread(self._store.versions, model)
            source = request.version or await self._one_before(model, before, kept)
            if source not in kept:
                raise InvalidArgument(
                    {"version": f"{source} is not kept; there are {', '.join(map(str, kept))}"}
                )
            own = await on_thread(self._store.read, model, str(source), CONFIG_FILE)
            config = model_config.parse(own) if own is not None else before
            version = await self._put_in_place(
                model, before, config, lambda name, number: self._store.copy(model, source, name, number)
            )
        log.info("model rolled back", model=model, version=version, source_version=source)
        return pb.RollbackModelResponse(model=model, version=version, source_version=source)

    async def list_versions(self) -> pb.ListModelVersionsResponse:
        """See `ModelService.ListModelVersions`."""
        models = [each for each in await on_thread(self._store.models) if not is_check(each)]
        index = await self._triton.index()
        served = served_versions(index)
        response = pb.ListModelVersionsResponse()
        for model in models:
            versions = await on_thread(self._store.versions, model)
            reason = ""
            if model not in served:
                said = [each.reason for each in index if each.model == model and each.reason]
                reason = said[-1] if said else "it is not loaded"
            response.models.add(
                model=model, served=served.get(model, 0), versions=versions, reason=reason[:1000]
            )
        return response

    async def watch(self) -> AsyncGenerator[pb.WatchModelsEvent, None]:
        """See `ModelService.WatchModels`; `seq` is left to the servicer. It ends with DRAINING at a drain."""
        if self._watchers.locked():
            raise ResourceExhausted(
                ERROR_REASON_OVERLOADED, "Too many watch the models already. Try again in a moment."
            )
        async with self._watchers, aclosing(watch(self._triton, self._drain)) as events:
            async for event in events:
                yield event

    async def sweep(self) -> None:
        """Removes what publishes left behind whose process died. Call it at the start.

        What cannot be done now is done before the next publish.
        """
        try:
            models = {each.partition(CHECK)[0] for each in await on_thread(self._store.models)}
            for model in sorted(models):
                with suppress(ResourceExhausted):  # another process is at it
                    async with self._alone(model):
                        pass  # it sweeps as it begins
        except WeftError as error:
            log.warning("model versions not swept", error=error.message)

    @asynccontextmanager
    async def _alone(self, model: str) -> AsyncIterator[Path]:
        """Holds the model, also against other processes; a directory for the time being."""
        if await on_thread(self._store.read, model, CONFIG_FILE) is None:
            raise _unknown(model)
        work = self._work / model
        try:
            self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self._work / f"{model}.lock").open("a") as lock:
                _take(lock, model)
                try:
                    await self._sweep(model, work)
                    work.mkdir()
                    yield work
                finally:
                    await on_thread(shutil.rmtree, work, ignore_errors=True)
        except VersionRefused as error:
            log.info("model version refused", model=model, why=str(error))
            raise refused(model, str(error)) from None
        except OSError as error:
            raise Unavailable(
                ERROR_REASON_BACKEND_UNAVAILABLE,
                f"The server cannot write the version ({error.strerror}). Try again later, or have its "
                "disk looked at.",
                metadata={"backend": "disk"},
            ) from error

    async def _sweep(self, model: str, work: Path) -> None:
        await on_thread(shutil.rmtree, work, ignore_errors=True)
        begins = model + CHECK
        for name in await on_thread(self._store.models):
            if name.startswith(begins):
                await self._discard(name)
        config = await self._config(model)
        named = model_config.pinned(config)
        for version in await on_thread(self._store.versions, model) if named else ():
            if version > named:
                await on_thread(self._store.remove, model, str(version))
        if named and served_versions(await self._triton.index()).get(model, 0) < named:
            try:
                await self._triton.load(model)
            except WeftError as error:
                log.warning("model not loaded", model=model, error=error.message)

    async def _discard(self, name: str) -> None:
        await self._trial.clear(name)
        await on_thread(self._store.remove, name)

    async def _put_in_place(
        self, model: str, before: Config, config: Config, fill: Callable[[str, int], object]
    ) -> int:
        """The number of the version whose files `fill` lays into (model, version) of the store."""
        version = max(await on_thread(self._store.versions, model), default=0) + 1
        name = f"{model}{CHECK}{secrets.token_hex(4)}"
        try:
            # First, so that a sweep knows it whatever happens next.
            await on_thread(self._store.write, name, model_config.text(config), CONFIG_FILE)
            await on_thread(fill, name, version)
            if await on_thread(self._store.size, name, version) == 0:
                raise VersionRefused("it has no files")
            file = model_config.model_file(config)
            if not await on_thread(self._store.is_file, name, str(version), file):
                raise VersionRefused(f"it has no {file}: send what stands in the directory of a version")
            given = await self._inherit(model, name, version, before)
            await self._trial.run(name, version, config, given, model)
            placing = asyncio.ensure_future(self._serve(model, name, version, before, config))
            try:
                await asyncio.shield(placing)
            except asyncio.CancelledError:
                await asyncio.wait([placing])
                raise
        finally:
            await on_thread(self._store.remove, name)
        return version

    async def _inherit(self, model: str, name: str, version: int, before: Config) -> dict[str, Any]:
        """The inputs for the trial: the version's own, else those of the version before.

        That one's own configuration is taken over likewise.
        """
        named = await self._named(model, before)
        for file in (CONFIG_FILE, CANARY_FILE) if named else ():
            if await on_thread(self._store.read, name, str(version), file) is None:
                content = await on_thread(self._store.read, model, str(named), file)
                if content is not None:
                    await on_thread(self._store.write, name, content, str(version), file)
        sent = await on_thread(self._store.read, name, str(version), CANARY_FILE)
        return read_canary(sent) if sent is not None else {}

    async def _serve(self, model: str, name: str, version: int, before: Config, config: Config) -> None:
        """From the trial to the answer of new calls."""
        named = await self._named(model, before)
        if named and config is not before:
            await self._keep_config(model, named, before)
        if named and not model_config.pinned(before):
            # Or a Triton that starts now would take what is only half there.
            before = model_config.pinned_to(before, named)
            await self._name(model, before)
        await on_thread(self._store.move, name, version, model)
        await self._name(model, model_config.pinned_to(config, version))
        try:
            await self._triton.load(model)
        except WeftError as error:
            await self._name(model, before)
            await on_thread(self._store.remove, model, str(version))
            if error.reason == ERROR_REASON_BACKEND_UNAVAILABLE:
                raise  # Triton itself is away: nothing is wrong with the version
            raise VersionRefused(f"Triton did not load it ({error.detail or error.message})") from error
        index = await self._triton.index()
        in_use = {int(each.version) for each in index if each.model == model and each.state in _IN_USE}
        for old in (await on_thread(self._store.versions, model))[KEPT:]:
            if old not in in_use:
                await on_thread(self._store.remove, model, str(old))

    async def _keep_config(self, model: str, version: int, config: Config) -> None:
        """A version that had the model's configuration keeps it where the next one brings its own."""
        if await on_thread(self._store.read, model, str(version), CONFIG_FILE) is None:
            content = model_config.text(config)
            await on_thread(self._store.write, model, content, str(version), CONFIG_FILE)

    async def _name(self, model: str, config: Config) -> None:
        await on_thread(self._store.write, model, model_config.text(config), CONFIG_FILE)

    async def _named(self, model: str, config: Config) -> int:
        """The version that is served, or is to be; 0: none."""
        if pinned := model_config.pinned(config):
            return pinned
        served = served_versions(await self._triton.index()).get(model, 0)
        return served or max(await on_thread(self._store.versions, model), default=0)

    async def _one_before(self, model: str, config: Config, kept: list[int]) -> int:
        named = await self._named(model, config)
        older = [version for version in kept if version < named]
        if not older:
            raise InvalidArgument({"version": f"is 0, and no version of {model} before {named} is kept"})
        return older[0]

    async def _config(self, model: str) -> Config:
        content = await on_thread(self._store.read, model, CONFIG_FILE)
        if content is None:
            raise _unknown(model)
        return model_config.parse(content)


def _take(lock: IO[str], model: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResourceExhausted(
            ERROR_REASON_OVERLOADED,
            f"A version of {model} is being published, or one that was broken off is still unloaded. "
            "Try again when that has ended.",
            retry_after_s=5,
            metadata={"model": model},
        ) from None


def _unknown(model: str) -> NotFound:
    return NotFound(
        ERROR_REASON_MODEL_NOT_FOUND,
        f"Triton's repository has no model {model}. `weft models list` names those it has.",
        metadata={"model": model},
    )


def _checked_name(model: str) -> str:
    if not _NAME.fullmatch(model) or is_check(model):
        raise InvalidArgument(
            {"model": "names the model, in the first message: 1 to 64 of a-z, 0-9, _ and -, without --check-"}
        )
    return model


async def _with_first(
    first: pb.PublishModelRequest | None, rest: AsyncIterator[pb.PublishModelRequest]
) -> AsyncIterator[pb.PublishModelRequest]:
    if first is not None:
        yield first
    async for message in rest:
        yield message


def _sent_config(directory: Path, before: Config, model: str) -> Config:
    """The configuration that was sent, else the one before."""
    for name in (CONFIG_FILE, CANARY_FILE):
        file = directory / name
        if file.is_dir():
            raise VersionRefused(f"its {name} is a directory")
        if file.exists() and file.stat().st_size > _SMALL_BYTES:
            raise VersionRefused(f"its {name} is longer than 1 MiB")
    file = directory / CONFIG_FILE
    if not file.exists():
        return before
    config = model_config.parse(file.read_bytes())
    model_config.check_same(config, before, model)
    return config

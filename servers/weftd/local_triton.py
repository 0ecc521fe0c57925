"""`weft triton`: NVIDIA's Triton on this machine, with the models of the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import structlog

from weftd import compose
from weftd.addresses import free_port
from weftd.compose import CannotStart, plainly
from weftd.compose_models import models_python, triton_address
from weftd.envoy.config import Endpoint
from weftd.lock import alone
from weftd.log_files import keep_small
from weftd.rpc.telemetry import configure_logging, serve_metrics
from weftd.settings import Settings
from weftd.signals import until_signal
from weftd.supervisor import announce_ready, die_with_parent
from weftd.triton.canary import Canary
from weftd.triton.installation import Installation, TritonMissing
from weftd.triton.metrics import show_triton
from weftd.triton.process import TritonConfig, TritonError, TritonProcess
from weftd.triton.repository import Model, assemble

__all__ = ["models", "run_triton", "triton_process"]

_LISTEN = "grpc://127.0.0.1:8001"

log = structlog.get_logger()


async def run_triton(settings: Settings) -> None:
    """Runs Triton at WEFT_TRITON_URL, mends what dies of it, and ends at SIGTERM with all that is its."""
    die_with_parent()
    compose.make_data_directory(settings)
    configure_logging(settings.log_level, service="triton")

    async def run() -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(alone(settings.data, "triton", "Triton"))
            page = compose.triton_metrics_socket(settings)
            with _triton_plainly():
                process = await stack.enter_async_context(triton_process(settings))
            canary = Canary(process)
            if page is not None and process.config.metrics is not None:
                show_triton(process.config.metrics)
                stack.callback(serve_metrics(page, lambda: [] if process.is_up else ["triton: starts again"]))
            announce_ready()
            async with asyncio.TaskGroup() as group:
                group.create_task(process.keep())
                group.create_task(canary.run())
                group.create_task(keep_small([process.log_file]))

    await until_signal(run(), lambda: log.info("stopped"))


def triton_process(settings: Settings) -> TritonProcess:
    """The server of the settings, its repository made ready. Blocks for the time of copying some small files.

    CannotStart or TritonMissing where that cannot be.
    """
    installation = Installation.find(models_python(settings))
    if settings.llm and not installation.has_torch:
        raise CannotStart("WEFT_LLM needs torch and transformers: run `make llm`, or leave it out.")
    listen = triton_address(settings.triton_url or _LISTEN)
    directory = settings.data.absolute() / "triton"
    repository = _repository(settings, directory)
    served = models(settings)
    with plainly():
        assemble(served, repository)
    config = TritonConfig(
        repository,
        [model.name for model in served],
        listen,
        metrics=Endpoint("127.0.0.1", free_port()) if settings.triton_metrics_address else None,
        traces=settings.triton_traces,
    )
    return TritonProcess(installation, config, directory)


def models(settings: Settings) -> list[Model]:
    """What is served: the embedder, and a reranker and a language model where those are configured."""
    # On a CPU a batch computes on one thread: as many instances as threads. A GPU takes all in one.
    instances = settings.threads if settings.device == "cpu" else 1
    cache = str(settings.data.absolute() / "models")

    def encoder(name: str, directory: Path | None) -> Model:
        own = {"directory": _named(directory), "cache": cache}
        return Model(name, settings.batch_size, instances, settings.device, own)

    found = [encoder("embedder", settings.embedder)]
    if settings.reranker:
        found.append(encoder("reranker", settings.reranker))
    if settings.llm:
        own = {"directory": _named(settings.llm), "threads": str(settings.threads)}
        found.append(Model("llm", device=settings.device, parameters=own))
    return found


def _repository(settings: Settings, directory: Path) -> Path:
    if "://" in settings.triton_repository:
        raise CannotStart(
            f"WEFT_TRITON_REPOSITORY={settings.triton_repository} is no directory: a Triton on this machine "
            "has its models in one. Leave it out, or name a directory."
        )
    return Path(settings.triton_repository).absolute() if settings.triton_repository else directory / "models"


def _named(directory: Path | None) -> str:
    return str(directory.absolute()) if directory else ""


@contextmanager
def _triton_plainly() -> Iterator[None]:
    with plainly():
        try:
            yield
        except (TritonMissing, TritonError) as error:
            raise CannotStart(str(error)) from error

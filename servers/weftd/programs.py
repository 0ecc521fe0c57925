"""The programs of the mesh: some services, the job process, Envoy. Each runs until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from weft.v1.error_reason_pb2 import ERROR_REASON_BACKEND_UNAVAILABLE
from weftd import compose, compose_models
from weftd.addresses import endpoints, grpc_target
from weftd.envoy.config import Endpoint
from weftd.envoy.process import EnvoyProcess
from weftd.errors import Unavailable
from weftd.lifecycle import run_until_stopped
from weftd.lock import alone
from weftd.rooms import Rooms, model_backends, passages_backends, records_backend, show_embedder, show_records
from weftd.rpc import gauges, telemetry
from weftd.rpc.channels import Peers
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.loop_lag import watch_loop
from weftd.rpc.server import bind, build_server
from weftd.rpc.tracing import start_tracing
from weftd.settings import ServiceName, Settings
from weftd.signals import until_signal
from weftd.supervisor import announce_ready, die_with_parent

__all__ = ["run_envoy", "run_jobs", "serve"]

_BACKENDS_LIMIT_S = 20.0
# Envoy asks every second and believes the second answer.
_NOTICE_S = 2.5
_DEV_TENANT = "default"
_DEV_TOKEN_LIFETIME_S = 3600.0
_PAGE = Path(__file__).with_name("edge") / "page"

log = structlog.get_logger()


async def serve(settings: Settings, names: Sequence[ServiceName]) -> None:
    """Runs services as one process. Unavailable names a configured backend that does not answer."""
    _begin(settings, "+".join(names))
    drain = Drain(settings.drain_grace_s)
    async with AsyncExitStack() as stack:
        rooms = Rooms(settings, stack, drain)
        services = [await rooms.open(name) for name in names if name != "edge"]
        health = Health([service.name for service in services], rooms.dependencies)
        start_span = None
        if settings.otlp_endpoint:
            start_span, stop_tracing = start_tracing(settings.otlp_endpoint, "+".join(names))
            stack.callback(stop_tracing)
        interceptor = CallInterceptor(compose.token_verifier(settings), drain, start_span)
        server = build_server(services, interceptor, health)
        with compose.plainly():
            for address in sorted({str(_own_address(settings, name)) for name in services_of(names)}):
                bind(server, address)
        await server.start()
        stack.push_async_callback(server.stop, None)
        beside = []
        if "edge" in names:
            listening = asyncio.get_running_loop().create_future()
            edge = asyncio.create_task(_serve_edge(settings, drain, listening.set_result), name="edge")
            beside.append(edge)
            stack.push_async_callback(_cancel, edge)
            await asyncio.wait({edge, listening}, return_when=asyncio.FIRST_COMPLETED)
            if edge.done():
                with compose.plainly():
                    edge.result()
        stack.callback(watch_loop())
        metrics = compose.metrics_socket(settings)
        if metrics is not None:
            stack.callback(telemetry.serve_metrics(metrics, health.problems, health.missing))
        await _require_backends(health)
        # What start-up made stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        announce_ready()
        log.info("ready", services=list(names))
        await run_until_stopped(server, health, drain, notice_s=_NOTICE_S, beside=beside)


def services_of(names: Sequence[ServiceName]) -> list[ServiceName]:
    """Those that speak gRPC."""
    return [name for name in names if name != "edge"]


def _own_address(settings: Settings, name: ServiceName) -> Endpoint:
    found = endpoints(settings.address(name))
    if len(found) > 1:
        raise ValueError(
            f"WEFT_{name.upper()}_ADDRESS={settings.address(name)} names {len(found)} addresses: "
            f"run them all with `weft serve {name} --workers {len(found)}`, or name this process's own."
        )
    return found[0]


async def _require_backends(health: Health) -> None:
    try:
        async with asyncio.timeout(_BACKENDS_LIMIT_S):
            while not health.serving(""):
                await health.check()
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise Unavailable(ERROR_REASON_BACKEND_UNAVAILABLE, "; ".join(health.problems())) from None


async def _serve_edge(settings: Settings, drain: Drain, on_ready: Callable[[int], None]) -> None:
    from weft.v1.chat_pb2_grpc import ChatServiceStub
    from weftd.edge.app import DevToken, build_app
    from weftd.edge.chat_socket import ChatSockets
    from weftd.edge.serve import serve as serve_edge

    def dev_token() -> DevToken:
        token = compose.make_token(
            settings,
            tenant=_DEV_TENANT,
            subject="developer",
            role="operator",
            lifetime_s=_DEV_TOKEN_LIFETIME_S,
        )
        return DevToken(token, int(time.time() + _DEV_TOKEN_LIFETIME_S))

    peers = Peers()
    with compose.plainly():
        chat = peers.stub(ChatServiceStub, "chat", grpc_target(settings.chat_address))
    sockets = ChatSockets(chat, drain, settings.allowed_origins)
    gauges.show_used("sockets", lambda: sockets.open)
    app = build_app(
        _PAGE,
        dev_token if settings.gives_dev_token else None,
        settings.allowed_hosts,
        settings.allowed_origins,
        sockets,
        drain.started.is_set,
    )
    try:
        listen = _own_address(settings, "edge")
        await serve_edge(app, listen.host, listen.port, on_ready=on_ready)
    finally:
        await peers.close()


async def run_jobs(settings: Settings) -> None:
    """Runs index jobs and purges, beside the other job processes on the same PostgreSQL."""
    _begin(settings, "jobs")
    from weftd.knowledge.index_steps import IndexSteps
    from weftd.knowledge.job_worker import GivenUp, JobWorker
    from weftd.knowledge.jobs import Jobs
    from weftd.knowledge.parsing.section import Limits
    from weftd.knowledge.passage_writer import PassageWriter
    from weftd.knowledge.purge_steps import PurgeSteps

    try:
        async with AsyncExitStack() as stack:
            is_alone = not settings.records_url
            if is_alone:
                stack.enter_context(alone(settings.data, "jobs", "The job process"))
            records = await stack.enter_async_context(compose.open_records(settings))
            passages = await stack.enter_async_context(compose.open_passages(settings))
            embedder = await stack.enter_async_context(compose_models.open_embedder(settings))
            show_records(records)
            show_embedder(embedder)
            blobs = compose.open_blobs(settings)
            writer = PassageWriter(tuple(passages.stores.values()))
            worker = JobWorker(records, alone=is_alone)
            index = IndexSteps(records, blobs, writer, embedder, Limits(), worker)
            jobs = Jobs(records, index, PurgeSteps(records, blobs, writer), worker, settings.jobs)
            ready = await _serve_jobs_metrics(
                settings,
                stack,
                Health(
                    [],
                    [
                        records_backend(records),
                        *passages_backends(passages),
                        *model_backends(settings, embedder=embedder),
                    ],
                ),
            )
            with compose.database_plainly("jobs"):
                await until_signal(jobs.run(ready), _log_end)
    except GivenUp:
        log.warning("jobs_start_anew", reason="Other job processes took this one for dead and have its jobs.")
        # The same process from its beginning: what its threads are about does not outlive this.
        os.execv(sys.executable, sys.orig_argv)


async def _serve_jobs_metrics(
    settings: Settings, stack: AsyncExitStack, health: Health
) -> Callable[[], None]:
    """`/metrics` and `/ready` of the job process; returns what to call once it takes up jobs."""
    problems = ["starting: no jobs are taken up yet"]

    def ready() -> None:
        problems.clear()
        announce_ready()

    stack.callback(watch_loop())
    watching = asyncio.create_task(health.watch())
    stack.push_async_callback(_cancel, watching)
    metrics = compose.jobs_metrics_socket(settings)
    if metrics is not None:
        serving = telemetry.serve_metrics(metrics, lambda: [*problems, *health.problems()], health.missing)
        stack.callback(serving)
    return ready


async def run_envoy(settings: Settings) -> None:
    """Runs Envoy in front of services that run elsewhere."""
    _begin(settings, "envoy")
    async with AsyncExitStack() as stack:
        with compose.plainly():
            envoy = await stack.enter_async_context(compose.envoy_process(settings))
        announce_ready()
        await until_signal(_while_running(envoy), _log_end)


async def _while_running(envoy: EnvoyProcess) -> None:
    code = await envoy.wait()
    raise compose.CannotStart(f"Envoy ended with status {code}; see {envoy.log_file}.")


def _begin(settings: Settings, service: str) -> None:
    die_with_parent()
    if compose.METRICS_FD in os.environ:  # not for what this process starts in its turn
        os.set_inheritable(int(os.environ[compose.METRICS_FD]), False)
    compose.make_data_directory(settings)
    # A loop beside busy threads gets the interpreter back four times sooner.
    sys.setswitchinterval(0.0005)
    telemetry.configure_logging(settings.log_level, service=service)


def _log_end() -> None:
    log.info("stopped")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

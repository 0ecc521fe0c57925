"""Health: what each service needs, whether it answers, and grpc.health.v1 to say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health_pb2
from prometheus_client import Gauge

from weftd.rpc import telemetry

_PERIOD_S: Final = 1.0
_PING_TIMEOUT_S: Final = 3.0

_UP: Final = Gauge("weft_backend_up", "1 where a backend answers, else 0.", ["backend"])

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Dependency:
    """A backend that is configured, and how to ask whether it answers.

    `ping` returns where it does and raises where it does not. `needed_by` are full names of services,
    as in "weft.v1.ChatService"; empty means all. One that is `replaceable` must answer once before
    the services that need it are ready; lost later, it is only reported, for they go on without it.
    """

    name: str
    address: str
    ping: Callable[[], Awaitable[object]]
    needed_by: Sequence[str] = ()
    replaceable: bool = False


class Health:
    """The state of the services of one process; also the servicer of grpc.health.v1.Health.

    `watch` asks the dependencies every second until it is cancelled: run it as a task. A service is
    NOT_SERVING until its dependencies have answered, and after `drain`.
    """

    def __init__(self, services: Sequence[str], dependencies: Sequence[Dependency] = ()) -> None:
        self._services = tuple(services)
        self._dependencies = tuple(dependencies)
        self._answers: dict[str, bool | None] = {dependency.name: None for dependency in dependencies}
        self._answered_once: set[str] = set()
        self._draining = False
        self._changed = asyncio.Condition()

    def problems(self) -> list[str]:
        """What keeps the process from being ready, a line each, with name and address. Empty: it is."""
        if self._draining:
            return ["stopping: no new calls are taken"]
        return [self._describe(dependency) for dependency in self._dependencies if self._blocks(dependency)]

    def missing(self) -> list[str]:
        """What the process goes on without, a line each: it answered once and does not now."""
        return [
            self._describe(dependency)
            for dependency in self._dependencies
            if not self._answers[dependency.name] and not self._blocks(dependency)
        ]

    def serving(self, service: str) -> bool | None:
        """Whether a service is ready, "" for all of them, or a backend answers; None for what is not here."""
        if service in self._answers:
            return bool(self._answers[service])
        if service and service not in self._services:
            return None
        if self._draining:
            return False
        return not any(
            self._blocks(dependency)
            for dependency in self._dependencies
            if not service or not dependency.needed_by or service in dependency.needed_by
        )

    async def check(self) -> None:
        """Asks every dependency once, all at the same time."""
        answers = await asyncio.gather(*(self._ping(dependency) for dependency in self._dependencies))
        changed = False
        for dependency, answer in zip(self._dependencies, answers, strict=True):
            if answer != self._answers[dependency.name]:
                changed = True
                if answer:
                    self._answered_once.add(dependency.name)
                say = log.info if answer else log.warning
                say("backend answers" if answer else "backend does not answer",
                    backend=dependency.name, address=dependency.address)  # fmt: skip
            self._answers[dependency.name] = answer
            _UP.labels(dependency.name).set(answer)
        if changed:
            await self._notify()

    async def watch(self) -> None:
        """Asks the dependencies again and again; ends only when cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(_PERIOD_S)

    async def drain(self) -> None:
        """NOT_SERVING from now on."""
        self._draining = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _ping(self, dependency: Dependency) -> bool:
        try:
            async with asyncio.timeout(_PING_TIMEOUT_S):
                await dependency.ping()
        except Exception as error:
            log.debug("ping failed", backend=dependency.name, **telemetry.describe(error))
            return False
        return True

    def _blocks(self, dependency: Dependency) -> bool:
        if dependency.replaceable and dependency.name in self._answered_once:
            return False
        return not self._answers[dependency.name]

    def _describe(self, dependency: Dependency) -> str:
        if self._answers[dependency.name] is None:
            return f"{dependency.name} at {dependency.address} has not been asked yet"
        return f"{dependency.name} at {dependency.address} does not answer: start it, or mend its address"

    # --- grpc.health.v1.Health ---

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        serving = self.serving(request.service)
        if serving is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No such service in this process.")
        return _response(serving)

    async def Watch(
        self, request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[Any, None]:
        while True:
            said = self.serving(request.service)
            yield _response(said)
            async with self._changed:
                await self._changed.wait_for(lambda: self.serving(request.service) != said)  # noqa: B023

    async def List(self, _request: Any, _context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        return health_pb2.HealthListResponse(
            statuses={name: _response(self.serving(name)) for name in ("", *self._services, *self._answers)}
        )


def _response(serving: bool | None) -> Any:
    states = health_pb2.HealthCheckResponse
    match serving:
        case None:
            return states(status=states.SERVICE_UNKNOWN)
        case True:
            return states(status=states.SERVING)
        case False:
            return states(status=states.NOT_SERVING)

"""The job process: takes committed work from the records into durable workflows and runs them.

Index jobs and purges are DBOS workflows: a step that finished is not run again, whatever is killed when.
Workflows run on threads of DBOS; their steps run on the one event loop of the process. Several job processes
may share the work: one that dies has its workflows taken over by the others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID, StepOptions
from sqlalchemy.exc import DBAPIError

from weftd.errors import ResourceExhausted, Unavailable, WeftError, reason_name
from weftd.knowledge import job_metrics
from weftd.knowledge.index_steps import IndexSteps, batches
from weftd.knowledge.job_database import patient_connections
from weftd.knowledge.job_worker import GivenUp, JobWorker
from weftd.knowledge.purge_steps import PurgeSteps
from weftd.stores.records import index_jobs, knowledge_requests
from weftd.stores.records.engine import Records

__all__ = ["Jobs"]

T = TypeVar("T")

_POLL_S = 0.5
# Work that is open but that DBOS has given up is looked for so often, and old answers are forgotten.
_REVIEW_S = 60.0
_REQUESTS_KEPT_MS = 24 * 3600 * 1000
# Never changes: a workflow would not be resumed by a process of another version.
_APPLICATION_VERSION = "1"
_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

log = structlog.get_logger()


class _Stopping(BaseException):
    """Ends a workflow's thread without a result: it goes on where it was in the next process."""


class Jobs:
    """Runs index jobs and purges as `worker`, which has not begun yet.

    `database_url`: SQLAlchemy URL of DBOS's own tables (a SQLite file, or the PostgreSQL of the records).
    """

    def __init__(
        self,
        records: Records,
        index: IndexSteps,
        purge: PurgeSteps,
        worker: JobWorker,
        database_url: str,
    ) -> None:
        self._records = records
        self._index = index
        self._purge = purge
        self._database_url = sa.make_url(database_url)
        self._worker = worker
        self._calls: set[concurrent.futures.Future[Any]] = set()
        self._stopping = False
        self._taken: set[str] = set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Runs until cancelled; calls `ready` once work is taken up. Unfinished work waits for the next.

        GivenUp: the process has to be replaced; threads of the job runner are left in it.
        """
        self._loop = asyncio.get_running_loop()
        await self._worker.begin()
        beating = asyncio.create_task(self._worker.keep_beating())
        working = asyncio.create_task(self._work(ready))
        try:
            await asyncio.wait([beating, working], return_when=asyncio.FIRST_COMPLETED)
            for each in (beating, working):
                if each.done():
                    each.result()
        finally:
            self._stopping = True
            for call in list(self._calls):
                call.cancel()
            beating.cancel()
            working.cancel()
            await asyncio.gather(beating, working, return_exceptions=True)
            if beating.cancelled() or not isinstance(beating.exception(), GivenUp):
                await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
            await self._worker.retire()

    async def _work(self, ready: Callable[[], None]) -> None:
        await asyncio.to_thread(self._launch)
        ready()
        while True:
            await self._patiently(self._review)
            until = time.monotonic() + _REVIEW_S
            while time.monotonic() < until:
                await self._patiently(self._take_up)
                await self._patiently(self._take_over)
                await asyncio.sleep(_POLL_S)

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """What a store that does not answer keeps from being done is done later."""
        try:
            await work()
        except (Unavailable, DBAPIError) as error:
            log.warning("jobs_wait", error=type(error).__name__)
            await asyncio.sleep(1)

    def _launch(self) -> None:
        url, connections = self._database_url, {}
        if url.get_backend_name() != "sqlite":
            url = url.set(drivername="postgresql")
            connections = patient_connections(url, lambda: self._stopping)
        config = DBOSConfig(
            name="weft",
            system_database_url=url.render_as_string(hide_password=False),
            application_version=_APPLICATION_VERSION,
            executor_id=self._worker.id,
            db_engine_kwargs=connections,
            log_level="WARNING",
        )
        # Else it makes one of its own, which tells what a step was given.
        logging.getLogger("dbos").addHandler(logging.NullHandler())
        DBOS(config=config)
        self._workflows: dict[str, Callable[[str], None]] = {
            "index": DBOS.workflow(name="index")(self._index_workflow()),
            "purge": DBOS.workflow(name="purge")(self._purge_workflow()),
        }
        DBOS.launch()
        DBOS.register_queue("index", worker_concurrency=2, polling_interval_sec=_POLL_S)
        DBOS.register_queue("purge", worker_concurrency=1, polling_interval_sec=_POLL_S)

    def _index_workflow(self) -> Callable[[str], None]:
        step, steps = self._step, self._index

        def parsed(job_id: str, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, int]]:
            for group in groups:
                yield from zip(group, step("parse", steps.parse, job_id, group), strict=True)

        def index(job_id: str) -> None:
            tenant = step("tenant", steps.tenant, job_id)
            changed = False
            try:
                while groups := step("plan", steps.plan, job_id):
                    changed = True
                    for batch in batches(parsed(job_id, groups)):
                        step("store", steps.store, job_id, batch)
                if changed:
                    step("compact", steps.compact, tenant)
            except Exception as error:
                reason, message = _explain(error)
                job_metrics.given_up(reason)
                log.exception("index_job_failed", job_id=job_id, reason=reason)
                step("fail", steps.fail, job_id, reason, message)

        return index

    def _purge_workflow(self) -> Callable[[str], None]:
        def purge(purge_id: str) -> None:
            self._step("passages", self._purge.passages, purge_id)
            self._step("references", self._purge.references, purge_id)
            self._step("files", self._purge.files, purge_id)

        return purge

    def _step(self, name: str, work: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Runs `work` on the event loop as a step of the workflow that this thread runs."""

        def run() -> T:
            log.debug("job_step", workflow_id=DBOS.workflow_id, step=DBOS.step_id, name=name)
            with job_metrics.measured(name):
                return self._call(work(*arguments))

        options = StepOptions(
            name=name,
            # A store that does not answer is waited for, eight minutes in all. Evenly: one that was gone for
            # a minute must not be waited for a minute more.
            retries_allowed=True,
            interval_seconds=2.0,
            max_attempts=240,
            backoff_rate=1.0,
            should_retry=_passes,
        )
        return DBOS.run_step(options, run)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._stopping:
            work.close()
            raise _Stopping
        call = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._calls.add(call)
        try:
            return call.result()
        except (concurrent.futures.CancelledError, GivenUp):
            raise _Stopping from None
        finally:
            self._calls.discard(call)

    async def _take_up(self) -> None:
        """Hands committed work over to DBOS, and removes what DBOS kept of work that has ended."""
        jobs, purges = await self._records.read(index_jobs.open_work)
        job_metrics.are_open(index=len(jobs), purge=len(purges))
        new = [("index", each) for each in jobs if each not in self._taken]
        new += [("purge", each) for each in purges if each not in self._taken]
        ended = self._taken.difference(jobs, purges)
        if new or ended:
            await asyncio.to_thread(self._hand_over, new)
            self._taken.update(each for _, each in new)
            self._taken -= await asyncio.to_thread(self._forget, ended)

    async def _take_over(self) -> None:
        """Puts the workflows of dead workers back into their queues, for whoever has room."""
        running = await asyncio.to_thread(_running_by_worker)
        for worker in await self._worker.gone(running.keys() - {self._worker.id}):
            log.info("jobs_taken_over", worker=worker, job_ids=running[worker])
            await asyncio.to_thread(_put_back, worker)

    def _hand_over(self, work: Iterable[tuple[str, str]]) -> None:
        for kind, work_id in work:
            status = DBOS.get_workflow_status(work_id)
            if status is not None and status.status in _ENDED:
                DBOS.delete_workflow(work_id)  # it ended without having done its work
            with SetWorkflowID(work_id):
                DBOS.enqueue_workflow(kind, self._workflows[kind], work_id)
            log.info("job_taken_up", kind=kind, job_id=work_id)

    def _forget(self, ended: Iterable[str]) -> set[str]:
        """Removes the outputs of workflows that are over; returns their ids."""
        forgotten = set()
        for work_id in ended:
            status = DBOS.get_workflow_status(work_id)
            if status is None or status.status in _ENDED:
                DBOS.delete_workflow(work_id)
                forgotten.add(work_id)
        return forgotten

    async def _review(self) -> None:
        """Looks at everything anew: what other processes left, and what is too old."""
        self._taken.clear()
        await self._take_up()
        before_ms = time.time_ns() // 1_000_000 - _REQUESTS_KEPT_MS
        await self._records.write(lambda connection: knowledge_requests.forget_before(connection, before_ms))
        await asyncio.to_thread(self._forget_strays)

    def _forget_strays(self) -> None:
        ended = DBOS.list_workflows(status=list(_ENDED), load_input=False, load_output=False)
        strays = [each.workflow_id for each in ended if each.workflow_id not in self._taken]
        if strays:
            DBOS.delete_workflows(strays)


def _running_by_worker() -> dict[str, list[str]]:
    running: dict[str, list[str]] = {}
    for each in DBOS.list_workflows(status="PENDING", load_input=False, load_output=False):
        running.setdefault(each.executor_id or "", []).append(each.workflow_id)
    return running


def _put_back(worker: str) -> None:
    # DBOS offers this to its own recovery service only. What another worker has claimed since stays there.
    DBOS._recover_pending_workflows([worker])


def _passes(error: BaseException) -> bool:
    return isinstance(error, Unavailable | ResourceExhausted)


def _explain(error: Exception) -> tuple[str, str]:
    """Reason and message for people, of what a step failed with in the end."""
    attempts = getattr(error, "errors", None)
    last = attempts[-1] if attempts else error
    if isinstance(last, WeftError):
        return reason_name(last.reason), last.message
    return "INTERNAL", "The index job failed; the server's log tells why. Index the dataset again."

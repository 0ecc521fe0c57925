"""The knowledge service's parts on a directory, and the service and the job process as programs.

An embedder that needs no model stands in for the real one. Each step of a job that begins is written to
`steps.log` in the directory, as `WORKFLOW STEP`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from weft.v1 import knowledge_pb2_grpc
from weftd.keys import ensure_keys
from weftd.knowledge.catalogue import Catalogue
from weftd.knowledge.index_steps import IndexSteps
from weftd.knowledge.intake import UploadLimits
from weftd.knowledge.job_worker import GivenUp, JobWorker
from weftd.knowledge.jobs import Jobs
from weftd.knowledge.parsing.section import Limits
from weftd.knowledge.passage_writer import PassageWriter
from weftd.knowledge.purge_steps import PurgeSteps
from weftd.knowledge.service import KnowledgeServicer
from weftd.knowledge.uploads import Uploads
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server
from weftd.stores.blobs.directory import DirectoryBlobs
from weftd.stores.passages.lance import LancePassages
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


class WordEmbedder:
    """A vector for each text from its words; a token is a word."""

    dim = 16
    max_tokens = 256

    def __init__(self, model_id: str = "words-1") -> None:
        self.model_id = model_id

    def supports(self, text: str) -> bool:
        return text.isascii()

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.encode()) % self.dim] += 1
            vectors[row, 0] += 1e-3
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\S+", text)]

    async def close(self) -> None: ...


@dataclass
class Knowledge:
    """What compose puts together, with nothing of the wire."""

    directory: Path
    records: Records
    blobs: DirectoryBlobs
    passages: LancePassages
    catalogue: Catalogue
    uploads: Uploads

    def jobs(self, embedder: WordEmbedder | None = None) -> Jobs:
        url = self.records.url.render_as_string(hide_password=False)
        is_sqlite = url.startswith("sqlite")
        worker = JobWorker(self.records, alone=is_sqlite)
        return Jobs(
            self.records,
            self.steps(worker, embedder),
            PurgeSteps(self.records, self.blobs, PassageWriter([self.passages])),
            worker,
            f"sqlite:///{self.directory / 'jobs.db'}" if is_sqlite else url,
        )

    def steps(self, worker: JobWorker, embedder: WordEmbedder | None = None) -> IndexSteps:
        writer = PassageWriter([self.passages])
        return IndexSteps(self.records, self.blobs, writer, embedder or WordEmbedder(), Limits(), worker)


@asynccontextmanager
async def opened(
    directory: Path, limits: UploadLimits | None = None, records_url: str = ""
) -> AsyncIterator[Knowledge]:
    url = records_url or f"sqlite:///{directory / 'records.db'}"
    await asyncio.to_thread(migrate, url)
    records = Records(url)
    passages = await LancePassages.connect(directory / "passages")
    blobs = DirectoryBlobs(directory / "blobs")
    writer = PassageWriter([passages])
    try:
        yield Knowledge(
            directory,
            records,
            blobs,
            passages,
            Catalogue(records, writer),
            Uploads(records, blobs, limits or UploadLimits()),
        )
    finally:
        await passages.close()
        await records.close()


@asynccontextmanager
async def running(jobs: Jobs) -> AsyncIterator[None]:
    """Runs jobs in this process."""
    ready = asyncio.Event()
    task = asyncio.create_task(jobs.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    try:
        if task.done():
            task.result()
        yield
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.wait([task])


# Made once; the processes that are started from here inherit the path.
KEYS = Path(os.environ.setdefault("WEFT_TEST_KEYS", f"{tempfile.mkdtemp()}/jwks.json"))
ensure_keys(KEYS)


def bearer(tenant: str = "acme", role: str = "editor") -> list[tuple[str, str]]:
    """Metadata of a call on behalf of a tenant."""
    token = mint(KEYS, issuer="weft", audience="weft", tenant=tenant, subject="u", roles=(role,), ttl_s=600)
    return [("authorization", f"Bearer {token}")]


@asynccontextmanager
async def served(knowledge: Knowledge) -> AsyncIterator[str]:
    """KnowledgeService behind the interceptor of every server; gives its address."""
    name = "weft.v1.KnowledgeService"
    servicer = KnowledgeServicer(knowledge.catalogue, knowledge.uploads)
    service = Service(name, servicer, knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server)
    verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=KEYS)
    server = build_server([service], CallInterceptor(verifier, Drain(grace_s=1)), Health([name]))
    port = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


# Its processes are forked from one that has imported everything: they start in no time.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.servers.knowledge"])


@contextmanager
def serving_process(directory: Path) -> Iterator[tuple[int, str]]:
    """The service in a process of its own: its id and address. Killed with -9 at the end."""
    with _program(_serve, directory) as (process, address):
        yield process.pid, address


@dataclass
class JobProcess:
    """A job process that is ready; killed with -9 at the end of its context."""

    pid: int
    kill: Callable[[], None]


@contextmanager
def job_process(directory: Path, records_url: str = "", says: str = "steps") -> Iterator[JobProcess]:
    """On SQLite, or on `records_url`. The steps that it begins are written to `says`.log."""
    with _program(partial(_jobs, records_url=records_url), directory, says) as (process, _):

        def kill() -> None:
            process.kill()
            process.join()

        yield JobProcess(process.pid, kill)


@contextmanager
def _program(
    main: Callable[[Path, Callable[[str], None]], Coroutine[Any, Any, None]],
    directory: Path,
    log: str = "steps",
) -> Iterator[tuple[Any, str]]:
    """`main` in a process of its own, and the first word that it says."""
    ours, theirs = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_run, args=(main, directory, theirs, log))
    process.start()
    theirs.close()
    try:
        yield process, ours.recv()
    finally:
        process.kill()
        process.join()
        ours.close()


def _run(
    main: Callable[[Path, Callable[[str], None]], Coroutine[Any, Any, None]],
    directory: Path,
    says: Any,
    log: str,
) -> None:
    _log_steps(directory / f"{log}.log")
    asyncio.run(main(directory, says.send))


def _log_steps(path: Path) -> None:
    file = path.open("a", buffering=1)

    def write(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("event") == "job_step":
            file.write(f"{event['workflow_id']} {event['step']}\n")
            raise structlog.DropEvent
        return event

    structlog.configure(
        processors=[write, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


async def _jobs(directory: Path, say: Callable[[str], None], records_url: str) -> None:
    try:
        async with opened(directory, records_url=records_url) as knowledge:
            await knowledge.jobs().run(lambda: say("ready"))
    except GivenUp:
        (directory / "anew.log").touch()
        os._exit(3)


async def _serve(directory: Path, say: Callable[[str], None]) -> None:
    async with opened(directory) as knowledge, served(knowledge) as address:
        await knowledge.uploads.recover()
        say(address)
        await asyncio.Event().wait()

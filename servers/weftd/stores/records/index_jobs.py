"""Index jobs and purges in the records: what the job process has to do.

A job or a purge is committed here first, together with what it is about; the job process takes it from
here into its durable workflows. So none is lost and none is made up, whatever dies when.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from weft.v1 import error_reason_pb2
from weftd.errors import FailedPrecondition
from weftd.stores.records import datasets as dataset_records
from weftd.stores.records.dataset_tables import datasets, documents, index_jobs, purges

__all__ = [
    "IndexJob",
    "Purge",
    "again",
    "begin",
    "empty_log",
    "fail",
    "finished_purge",
    "open_work",
    "plan",
    "purge",
    "start",
]

_j, _d, _p = index_jobs.c, documents.c, purges.c
# A refusal that another run may not meet again.
_WORTH_A_RETRY = ("PARSER_LIMIT",)


@dataclass(frozen=True, slots=True)
class IndexJob:
    job_id: str
    tenant: str
    dataset_id: str
    chunk_size: int
    overlap: int


@dataclass(frozen=True, slots=True)
class Purge:
    """What a purge has to remove: documents as (document_id, blob)."""

    tenant: str
    dataset_id: str
    documents: tuple[tuple[str, str], ...]


def begin(
    connection: sa.Connection, tenant: str, dataset_id: str, chunk_size: int, overlap: int, now_ms: int
) -> str:
    """The id of the dataset's job with these options: the one that is open, or a new one.

    NotFound; FailedPrecondition: DATASET_EMPTY, or INDEX_RUNNING beside a job with other options.
    """
    dataset_records.lock(connection, tenant, dataset_id)
    mine = [_j.tenant == tenant, _j.dataset_id == dataset_id]
    is_open = _j.state.in_(("pending", "running"))
    job = connection.execute(sa.select(index_jobs).where(*mine, is_open)).one_or_none()
    if job is not None:
        if (job.chunk_size, job.overlap) == (chunk_size, overlap):
            return str(job.job_id)
        raise FailedPrecondition(
            error_reason_pb2.ERROR_REASON_INDEX_RUNNING,
            f"A job indexes {dataset_id} with other options. Wait until its status is no longer "
            "pending or indexing, then ask again.",
            metadata={"job_id": job.job_id, "dataset_id": dataset_id},
            retry_after_s=5.0,
        )
    any_document = sa.select(_d.document_id).where(
        _d.tenant == tenant, _d.dataset_id == dataset_id, _d.purge_id.is_(None)
    )
    if connection.execute(any_document.limit(1)).first() is None:
        raise FailedPrecondition(
            error_reason_pb2.ERROR_REASON_DATASET_EMPTY,
            f"The dataset {dataset_id} has no documents. Upload some, then index it.",
            metadata={"dataset_id": dataset_id},
        )
    connection.execute(sa.delete(index_jobs).where(*mine))
    job_id = f"job_{secrets.token_hex(12)}"
    connection.execute(
        sa.insert(index_jobs).values(
            job_id=job_id,
            tenant=tenant,
            dataset_id=dataset_id,
            chunk_size=chunk_size,
            overlap=overlap,
            state="pending",
            created_at_ms=now_ms,
        )
    )
    return job_id


def open_work(connection: sa.Connection) -> tuple[list[str], list[str]]:
    """Ids of the index jobs and of the purges that are not finished, the oldest first."""
    jobs = sa.select(_j.job_id).where(_j.state.in_(("pending", "running")))
    purging = sa.select(_p.purge_id).order_by(_p.created_at_ms)
    return (
        list(connection.execute(jobs.order_by(_j.created_at_ms)).scalars()),
        list(connection.execute(purging).scalars()),
    )


def start(connection: sa.Connection, job_id: str) -> IndexJob | None:
    """The open job; None where it has ended or its dataset was deleted."""
    row = connection.execute(
        sa.select(_j.job_id, _j.tenant, _j.dataset_id, _j.chunk_size, _j.overlap).where(
            _j.job_id == job_id, _j.state.in_(("pending", "running"))
        )
    ).one_or_none()
    return IndexJob(*row) if row else None


def plan(connection: sa.Connection, job_id: str, model_id: str, fingerprint: str) -> list[tuple[str, int]]:
    """The documents that the job still has to index, as (document_id, bytes), in the order of upload.

    None left: the job is done, in the same commit. So a document that was uploaded while the job ran is
    either in here, or in the next job.
    """
    job = start(connection, job_id)
    if job is None:
        return []
    dataset_records.lock(connection, job.tenant, job.dataset_id)
    mine = [_d.tenant == job.tenant, _d.dataset_id == job.dataset_id, _d.purge_id.is_(None)]
    first_time = connection.execute(sa.select(_j.state).where(_j.job_id == job_id)).scalar_one() == "pending"
    outdated = sa.and_(_d.status != "stored", _d.fingerprint != fingerprint)
    if first_time:
        outdated = sa.or_(outdated, sa.and_(_d.status == "refused", _d.reason.in_(_WORTH_A_RETRY)))
    reset = {"status": "stored", "passages": 0, "chunks": 0, "reason": "", "message": ""}
    connection.execute(sa.update(documents).where(*mine, outdated).values(**reset))
    waiting = sa.select(_d.document_id, _d.bytes).where(*mine, _d.status == "stored")
    todo = connection.execute(waiting.order_by(_d.uploaded_at_ms, _d.position, _d.document_id)).all()
    job_state = "running" if todo else "done"
    connection.execute(sa.update(index_jobs).where(_j.job_id == job_id).values(state=job_state))
    of_dataset = (datasets.c.tenant == job.tenant, datasets.c.dataset_id == job.dataset_id)
    connection.execute(sa.update(datasets).where(*of_dataset).values(model_id=model_id))
    return [(row.document_id, row.bytes) for row in todo]


def fail(connection: sa.Connection, job_id: str, reason: str, message: str) -> None:
    """The job as a whole cannot go on."""
    is_open = _j.state.in_(("pending", "running"))
    failed = {"state": "failed", "reason": reason, "message": message}
    connection.execute(sa.update(index_jobs).where(_j.job_id == job_id, is_open).values(**failed))


def again(connection: sa.Connection, tenant: str, document_ids: Sequence[str]) -> None:
    """Has these documents, as far as they were not deleted, parsed and indexed again by their last job."""
    live = sa.and_(_d.tenant == tenant, _d.document_id.in_(document_ids), _d.purge_id.is_(None))
    reset = {"status": "stored", "fingerprint": "", "passages": 0, "chunks": 0, "reason": "", "message": ""}
    connection.execute(sa.update(documents).where(live).values(**reset))
    theirs = sa.select(_d.dataset_id).where(live)
    finished = (_j.tenant == tenant, _j.dataset_id.in_(theirs), _j.state == "done")
    connection.execute(sa.update(index_jobs).where(*finished).values(state="pending"))


def purge(connection: sa.Connection, purge_id: str) -> Purge | None:
    """What the purge has to remove; None where it is finished."""
    row = connection.execute(sa.select(purges).where(_p.purge_id == purge_id)).one_or_none()
    if row is None:
        return None
    files = connection.execute(sa.select(_d.document_id, _d.blob).where(_d.purge_id == purge_id))
    return Purge(row.tenant, row.dataset_id, tuple((each.document_id, each.blob) for each in files))


def finished_purge(connection: sa.Connection, purge_id: str) -> None:
    """Forgets the purge and the documents that were kept for it."""
    connection.execute(sa.delete(documents).where(_d.purge_id == purge_id))
    connection.execute(sa.delete(purges).where(_p.purge_id == purge_id))


def empty_log(connection: sa.Connection) -> None:
    """Takes what was deleted out of SQLite's write-ahead log, where it would stay until it is overwritten."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

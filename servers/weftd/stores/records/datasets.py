"""Datasets in the records: make, list, look at, resolve for a search, delete.

Every function takes a connection, for `Records.read` or `Records.write`. None of them sees what is marked
for a purge: it is gone for everyone from the moment it was deleted.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from weft.v1 import error_reason_pb2
from weftd.errors import NotFound
from weftd.stores.records.dataset_tables import datasets, documents, index_jobs, knowledge_requests, purges

__all__ = [
    "DatasetState",
    "LiveDataset",
    "create",
    "delete",
    "insert_new",
    "live_documents",
    "lock",
    "page",
    "require",
    "resolve",
    "state",
]


@dataclass(frozen=True, slots=True)
class DatasetState:
    """A dataset and how far its index is.

    `status` is "pending", "indexing", "ready" or "failed"; `progress` is 0 to 1; `chunks` counts the
    searchable passages. `job_error` is (reason, message) of a job that failed as a whole.
    """

    dataset_id: str
    name: str
    created_at_ms: int
    status: str
    progress: float
    documents: int
    chunks: int
    job_error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class LiveDataset:
    """A dataset that can be searched; `model_id` is empty as long as nothing of it was indexed."""

    dataset_id: str
    model_id: str


def not_found(dataset_id: str) -> NotFound:
    return NotFound(
        error_reason_pb2.ERROR_REASON_DATASET_NOT_FOUND,
        f"There is no dataset {dataset_id}. List the datasets to see which there are.",
        metadata={"dataset_id": dataset_id},
    )


def document_not_found(document_id: str) -> NotFound:
    return NotFound(
        error_reason_pb2.ERROR_REASON_DOCUMENT_NOT_FOUND,
        f"There is no document {document_id}. List the dataset's documents to see which there are.",
        metadata={"document_id": document_id},
    )


def insert_new(connection: sa.Connection, table: sa.Table, values: Mapping[str, object]) -> bool:
    """Inserts a row; False where one of its unique keys is taken, which changes nothing."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values(**values).on_conflict_do_nothing().returning(sa.literal(1))
    return connection.execute(statement).first() is not None


def create(connection: sa.Connection, tenant: str, dataset_id: str, name: str, now_ms: int) -> bool:
    """False where the tenant has a dataset of that id."""
    row = {"tenant": tenant, "dataset_id": dataset_id, "name": name, "created_at_ms": now_ms}
    return insert_new(connection, datasets, row)


def lock(connection: sa.Connection, tenant: str, dataset_id: str) -> sa.Row[tuple[str, str, str, str, int]]:
    """The dataset's row, held until the transaction ends, so that changes to one dataset do not cross."""
    row = connection.execute(_one(tenant, dataset_id).with_for_update()).one_or_none()
    if row is None:
        raise not_found(dataset_id)
    return row


def require(connection: sa.Connection, tenant: str, dataset_id: str) -> None:
    """NotFound where the tenant has no such dataset."""
    if connection.execute(_one(tenant, dataset_id)).first() is None:
        raise not_found(dataset_id)


def state(connection: sa.Connection, tenant: str, dataset_id: str) -> DatasetState:
    """NotFound where the tenant has no such dataset."""
    rows = connection.execute(_one(tenant, dataset_id)).all()
    if not rows:
        raise not_found(dataset_id)
    return _states(connection, tenant, rows)[0]


def page(
    connection: sa.Connection, tenant: str, limit: int, before: tuple[int, str] | None
) -> list[DatasetState]:
    """The newest first; `before` is (created_at_ms, dataset_id) of the last one of the page before."""
    key = sa.tuple_(datasets.c.created_at_ms, datasets.c.dataset_id)
    query = sa.select(datasets).where(datasets.c.tenant == tenant).limit(limit)
    query = query.order_by(datasets.c.created_at_ms.desc(), datasets.c.dataset_id.desc())
    if before is not None:
        query = query.where(key < sa.tuple_(*map(sa.literal, before)))
    return _states(connection, tenant, connection.execute(query).all())


def resolve(
    connection: sa.Connection, tenant: str, dataset_ids: Collection[str], document_ids: Collection[str]
) -> list[LiveDataset]:
    """The datasets to search: those named, or all of the tenant.

    NotFound (DATASET_NOT_FOUND, DOCUMENT_NOT_FOUND) for one that the tenant does not have, or a document
    that is in none of the named datasets.
    """
    query = sa.select(datasets.c.dataset_id, datasets.c.model_id).where(datasets.c.tenant == tenant)
    if dataset_ids:
        query = query.where(datasets.c.dataset_id.in_(dataset_ids))
    found = [LiveDataset(*row) for row in connection.execute(query.order_by(datasets.c.dataset_id))]
    for missing in set(dataset_ids).difference(each.dataset_id for each in found):
        raise not_found(missing)
    if document_ids:
        alive = sa.select(documents.c.document_id).where(
            documents.c.tenant == tenant,
            documents.c.document_id.in_(document_ids),
            documents.c.purge_id.is_(None),
        )
        if dataset_ids:
            alive = alive.where(documents.c.dataset_id.in_(dataset_ids))
        for missing in set(document_ids).difference(connection.execute(alive).scalars()):
            raise document_not_found(missing)
    return found


def live_documents(connection: sa.Connection, tenant: str, document_ids: Collection[str]) -> set[str]:
    """Those of `document_ids` that were not deleted: a search drops hits of all others."""
    query = sa.select(documents.c.document_id).where(
        documents.c.tenant == tenant,
        documents.c.document_id.in_(document_ids),
        documents.c.purge_id.is_(None),
    )
    return set(connection.execute(query).scalars())


def delete(
    connection: sa.Connection, tenant: str, dataset_id: str, document_id: str | None, now_ms: int
) -> list[str]:
    """Marks a document, or without one the whole dataset, for a purge. Gone for everyone on commit.

    Returns the ids of its documents. NotFound where the tenant has no such dataset or document.
    """
    lock(connection, tenant, dataset_id)
    purge_id = f"purge_{secrets.token_hex(12)}"
    of_dataset = [documents.c.tenant == tenant, documents.c.dataset_id == dataset_id]
    alive = [*of_dataset, documents.c.purge_id.is_(None)]
    if document_id is not None:
        alive.append(documents.c.document_id == document_id)
    gone = list(connection.execute(sa.select(documents.c.document_id).where(*alive)).scalars())
    if document_id is None:
        for table in (datasets, index_jobs, knowledge_requests):
            key = [table.c.tenant == tenant, table.c.dataset_id == dataset_id]
            connection.execute(sa.delete(table).where(*key))
    elif not gone:
        raise document_not_found(document_id)
    connection.execute(sa.update(documents).where(*alive).values(purge_id=purge_id))
    row = {"purge_id": purge_id, "tenant": tenant, "dataset_id": dataset_id, "created_at_ms": now_ms}
    connection.execute(sa.insert(purges).values(**row))
    return gone


def _one(tenant: str, dataset_id: str) -> sa.Select[tuple[str, str, str, str, int]]:
    return sa.select(datasets).where(datasets.c.tenant == tenant, datasets.c.dataset_id == dataset_id)


def _states(
    connection: sa.Connection, tenant: str, rows: Sequence[sa.Row[tuple[str, str, str, str, int]]]
) -> list[DatasetState]:
    ids = [row.dataset_id for row in rows]
    counts = {each.dataset_id: each for each in connection.execute(_counts(tenant, ids))}
    newest_job = (
        sa.select(index_jobs)
        .where(index_jobs.c.tenant == tenant, index_jobs.c.dataset_id.in_(ids))
        .order_by(index_jobs.c.created_at_ms)
    )
    jobs = {each.dataset_id: each for each in connection.execute(newest_job)}
    return [_state(row, counts.get(row.dataset_id), jobs.get(row.dataset_id)) for row in rows]


def _counts(tenant: str, dataset_ids: Sequence[str]) -> sa.Select[tuple[str, int, int, int, int, float]]:
    c = documents.c
    part = sa.case((c.passages > 0, c.chunks * 1.0 / c.passages), else_=0.0)
    return (
        sa.select(
            c.dataset_id,
            sa.func.count().label("documents"),
            sa.func.sum(c.chunks).label("chunks"),
            sa.func.sum(sa.case((c.status == "stored", 1), else_=0)).label("stored"),
            sa.func.sum(sa.case((c.status == "indexed", 1), else_=0)).label("indexed"),
            sa.func.sum(sa.case((c.status == "stored", part), else_=1.0)).label("done"),
        )
        .where(c.tenant == tenant, c.dataset_id.in_(dataset_ids), c.purge_id.is_(None))
        .group_by(c.dataset_id)
    )


def _state(
    row: sa.Row[tuple[str, str, str, str, int]],
    counts: sa.Row[tuple[str, int, int, int, int, float]] | None,
    job: sa.Row[tuple[object, ...]] | None,
) -> DatasetState:
    job_state = job.state if job is not None else ""
    if job_state == "running":
        status = "indexing"
    elif job_state == "failed":
        status = "failed"
    elif job_state == "pending" or counts is None or counts.stored:
        status = "pending"
    else:
        status = "ready" if counts.indexed else "failed"
    return DatasetState(
        dataset_id=row.dataset_id,
        name=row.name,
        created_at_ms=row.created_at_ms,
        status=status,
        progress=round(counts.done / counts.documents, 4) if counts else 0.0,
        documents=counts.documents if counts else 0,
        chunks=counts.chunks if counts else 0,
        job_error=(job.reason, job.message) if job is not None and job_state == "failed" else None,
    )

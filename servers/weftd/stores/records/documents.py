"""Documents in the records: what was uploaded, and how far each is indexed.

Every function takes a connection, for `Records.read` or `Records.write`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from weftd.stores.records import datasets
from weftd.stores.records.dataset_tables import documents

__all__ = [
    "StoredFile",
    "add",
    "blob_known",
    "live",
    "page",
    "parsed",
    "refusals",
    "refused",
    "stored_passages",
]

_c = documents.c
_LIVE = _c.purge_id.is_(None)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose bytes are on disk under the key `blob`; `size` in bytes."""

    name: str
    sha256: str
    size: int
    blob: str


def add(
    connection: sa.Connection, tenant: str, dataset_id: str, files: Sequence[StoredFile], now_ms: int
) -> list[tuple[str, bool]]:
    """Records the files of one upload; makes the dataset where there is none.

    Returns for each file the document's id and whether it is kept under the file's own key: the same bytes
    are one document. May be asked again where it is not known whether a commit went through.
    """
    datasets.create(connection, tenant, dataset_id, dataset_id, now_ms)
    datasets.lock(connection, tenant, dataset_id)
    added = []
    for position, file in enumerate(files):
        same = [_c.tenant == tenant, _c.dataset_id == dataset_id, _c.sha256 == file.sha256]
        known = connection.execute(sa.select(_c.document_id, _c.blob).where(*same, _LIVE)).one_or_none()
        if known is not None:
            added.append((known.document_id, known.blob == file.blob))
            continue
        # What is being purged keeps its id until it is gone: then the next one is taken.
        purging = set(connection.execute(sa.select(_c.document_id).where(*same)).scalars())
        candidates = (_document_id(tenant, dataset_id, file.sha256, n) for n in range(len(purging) + 1))
        document_id = next(each for each in candidates if each not in purging)
        connection.execute(
            sa.insert(documents).values(
                tenant=tenant,
                document_id=document_id,
                dataset_id=dataset_id,
                name=file.name,
                sha256=file.sha256,
                bytes=file.size,
                blob=file.blob,
                status="stored",
                uploaded_at_ms=now_ms,
                position=position,
            )
        )
        added.append((document_id, True))
    return added


def _document_id(tenant: str, dataset_id: str, sha256: str, attempt: int) -> str:
    text = "\0".join((tenant, dataset_id, sha256, str(attempt)))
    return f"doc_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def blob_known(connection: sa.Connection, blob: str) -> bool:
    """Whether a document, deleted or not, has its bytes under this key."""
    return connection.execute(sa.select(_c.blob).where(_c.blob == blob)).first() is not None


def page(
    connection: sa.Connection, tenant: str, dataset_id: str, limit: int, after: tuple[int, int, str] | None
) -> list[sa.Row[Any]]:
    """In the order of upload; `after` is (uploaded_at_ms, position, document_id) of the last page's last.

    NotFound where the tenant has no such dataset.
    """
    datasets.require(connection, tenant, dataset_id)
    order = (_c.uploaded_at_ms, _c.position, _c.document_id)
    query = sa.select(documents).where(_c.tenant == tenant, _c.dataset_id == dataset_id, _LIVE)
    if after is not None:
        query = query.where(sa.tuple_(*order) > sa.tuple_(*map(sa.literal, after)))
    return list(connection.execute(query.order_by(*order).limit(limit)))


def refusals(connection: sa.Connection, tenant: str, dataset_id: str, limit: int) -> list[sa.Row[Any]]:
    """The documents that could not be indexed, in the order of upload."""
    query = sa.select(_c.document_id, _c.name, _c.reason, _c.message).where(
        _c.tenant == tenant, _c.dataset_id == dataset_id, _c.status == "refused", _LIVE
    )
    return list(connection.execute(query.order_by(_c.uploaded_at_ms, _c.position).limit(limit)))


def live(connection: sa.Connection, tenant: str, document_ids: Collection[str]) -> dict[str, sa.Row[Any]]:
    """The rows of those that were not deleted, by id."""
    query = sa.select(documents).where(_c.tenant == tenant, _c.document_id.in_(document_ids), _LIVE)
    return {row.document_id: row for row in connection.execute(query)}


def parsed(connection: sa.Connection, tenant: str, document_id: str, fingerprint: str, passages: int) -> bool:
    """Parsing found `passages`; none of them is searchable yet. False where it was deleted meanwhile."""
    return _update(
        connection, tenant, document_id, status="stored", fingerprint=fingerprint, passages=passages, chunks=0
    )


def refused(
    connection: sa.Connection, tenant: str, document_id: str, fingerprint: str, reason: str, message: str
) -> bool:
    """The document cannot be indexed. False where it was deleted meanwhile."""
    return _update(
        connection,
        tenant,
        document_id,
        status="refused",
        fingerprint=fingerprint,
        passages=0,
        chunks=0,
        reason=reason,
        message=message,
    )


def stored_passages(connection: sa.Connection, tenant: str, document_id: str, chunks: int) -> bool:
    """The first `chunks` passages are searchable; all of them: it is indexed. False where it was deleted."""
    status = sa.case((_c.passages == chunks, "indexed"), else_="stored")
    return _update(connection, tenant, document_id, chunks=chunks, status=status)


def _update(connection: sa.Connection, tenant: str, document_id: str, **values: Any) -> bool:
    key = (_c.tenant == tenant, _c.document_id == document_id, _LIVE)
    return connection.execute(sa.update(documents).where(*key).values(**values)).rowcount == 1

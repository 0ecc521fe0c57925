"""Tables of datasets, documents, index jobs and purges.

A document that was deleted keeps its row, marked with its purge, until every trace of it is gone; a deleted
dataset's row goes at once, so that its id is free.
"""

from __future__ import annotations

import sqlalchemy as sa

from weftd.stores.records.schema import metadata

__all__ = ["datasets", "documents", "index_jobs", "knowledge_requests", "purges"]

_LIVE = sa.text("purge_id IS NULL")
_OPEN = sa.text("state IN ('pending', 'running')")

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("dataset_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    # Embedding model of its passages; empty until the first index job begins.
    sa.Column("model_id", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)
sa.Index("ix_datasets_newest", datasets.c.tenant, datasets.c.created_at_ms, datasets.c.dataset_id)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("document_id", sa.Text, primary_key=True),
    sa.Column("dataset_id", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    # Key of its bytes in the blob store.
    sa.Column("blob", sa.Text, nullable=False, unique=True),
    sa.Column("status", sa.Text, nullable=False),  # stored, indexed, refused
    # Embedding model and options that the passages were made with; empty before the document was parsed.
    sa.Column("fingerprint", sa.Text, nullable=False, server_default=""),
    # Passages that parsing found, and how many of them are searchable.
    sa.Column("passages", sa.Integer, nullable=False, server_default="0"),
    sa.Column("chunks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("message", sa.Text, nullable=False, server_default=""),
    sa.Column("uploaded_at_ms", sa.BigInteger, nullable=False),
    # Place among the files of its upload.
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("purge_id", sa.Text, nullable=True),
)
sa.Index(
    "ix_documents_upload_order",
    documents.c.tenant,
    documents.c.dataset_id,
    documents.c.uploaded_at_ms,
    documents.c.position,
    documents.c.document_id,
)
sa.Index("ix_documents_purge_id", documents.c.purge_id)
# The same bytes are one document.
sa.Index(
    "uq_documents_live_bytes",
    documents.c.tenant,
    documents.c.dataset_id,
    documents.c.sha256,
    unique=True,
    sqlite_where=_LIVE,
    postgresql_where=_LIVE,
)

index_jobs = sa.Table(
    "index_jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("dataset_id", sa.Text, nullable=False),
    sa.Column("chunk_size", sa.Integer, nullable=False),
    sa.Column("overlap", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # pending, running, done, failed
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("message", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)
sa.Index("ix_index_jobs_dataset", index_jobs.c.tenant, index_jobs.c.dataset_id)
sa.Index(
    "uq_index_jobs_open",
    index_jobs.c.tenant,
    index_jobs.c.dataset_id,
    unique=True,
    sqlite_where=_OPEN,
    postgresql_where=_OPEN,
)

purges = sa.Table(
    "purges",
    metadata,
    sa.Column("purge_id", sa.Text, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("dataset_id", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)

knowledge_requests = sa.Table(
    "knowledge_requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("dataset_id", sa.Text, nullable=False),
    # Hash of what was asked: the same id with other content is refused.
    sa.Column("digest", sa.Text, nullable=False),
    # Id of what was made: a dataset or a job.
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
)
sa.Index("ix_knowledge_requests_dataset", knowledge_requests.c.tenant, knowledge_requests.c.dataset_id)
sa.Index("ix_knowledge_requests_created_at_ms", knowledge_requests.c.created_at_ms)

"""Datasets, documents, index jobs, purges and answers to repeated requests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    live = sa.text("purge_id IS NULL")
    open_job = sa.text("state IN ('pending', 'running')")
    op.create_table(
        "datasets",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("dataset_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model_id", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_datasets_newest", "datasets", ["tenant", "created_at_ms", "dataset_id"])
    op.create_table(
        "documents",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("document_id", sa.Text, primary_key=True),
        sa.Column("dataset_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("blob", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False, server_default=""),
        sa.Column("passages", sa.Integer, nullable=False, server_default="0"),
        sa.Column("chunks", sa.Integer, nullable=False, server_default="0"),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("message", sa.Text, nullable=False, server_default=""),
        sa.Column("uploaded_at_ms", sa.BigInteger, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("purge_id", sa.Text, nullable=True),
        sa.UniqueConstraint("blob", name="uq_documents_blob"),
    )
    op.create_index(
        "ix_documents_upload_order",
        "documents",
        ["tenant", "dataset_id", "uploaded_at_ms", "position", "document_id"],
    )
    op.create_index("ix_documents_purge_id", "documents", ["purge_id"])
    op.create_index(
        "uq_documents_live_bytes",
        "documents",
        ["tenant", "dataset_id", "sha256"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "index_jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("dataset_id", sa.Text, nullable=False),
        sa.Column("chunk_size", sa.Integer, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("message", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_index_jobs_dataset", "index_jobs", ["tenant", "dataset_id"])
    op.create_index(
        "uq_index_jobs_open",
        "index_jobs",
        ["tenant", "dataset_id"],
        unique=True,
        sqlite_where=open_job,
        postgresql_where=open_job,
    )
    op.create_table(
        "purges",
        sa.Column("purge_id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("dataset_id", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "knowledge_requests",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("dataset_id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_knowledge_requests_dataset", "knowledge_requests", ["tenant", "dataset_id"])
    op.create_index("ix_knowledge_requests_created_at_ms", "knowledge_requests", ["created_at_ms"])

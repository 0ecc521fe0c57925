"""Conversations: messages, turns, their events, ratings, and the workers that run them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    running = sa.text("status = 'running'")
    op.create_table(
        "conversations",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("conversation_id", sa.String(256), primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.Column("next_position", sa.Integer, nullable=False),
    )
    op.create_index(
        "ix_conversations_latest", "conversations", ["tenant", "updated_at_ms", "conversation_id"]
    )
    op.create_table(
        "messages",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("conversation_id", sa.String(256), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("created_at_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        postgresql_partition_by="RANGE (created_at_ms)",
    )
    op.create_table(
        "turns",
        sa.Column(
            "turn_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("conversation_id", sa.String(256), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("options", sa.LargeBinary, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("started_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("replayable", sa.Boolean, nullable=False),
        sa.UniqueConstraint("tenant", "conversation_id", "request_id", name="uq_turns_request"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_turns_running",
        "turns",
        ["tenant", "conversation_id"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
    op.create_index("ix_turns_owner", "turns", ["owner"], sqlite_where=running, postgresql_where=running)
    op.create_index(
        "ix_turns_ended",
        "turns",
        ["ended_at_ms"],
        sqlite_where=sa.text("replayable"),
        postgresql_where=sa.text("replayable"),
    )
    op.create_table(
        "turn_events",
        sa.Column("turn_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "answer_references",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("conversation_id", sa.String(256), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("dataset_id", sa.String(128), nullable=False),
        sa.Column("document_id", sa.String(128), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_index(
        "ix_answer_references_document", "answer_references", ["tenant", "dataset_id", "document_id"]
    )
    op.create_table(
        "ratings",
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("conversation_id", sa.String(256), primary_key=True),
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("rating", sa.String(8), nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("rated_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "chat_workers",
        sa.Column("worker_id", sa.String(64), primary_key=True),
        sa.Column("beat_at_ms", sa.BigInteger, nullable=False),
    )

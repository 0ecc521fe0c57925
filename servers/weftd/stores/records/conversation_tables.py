"""The tables of conversations. Every row carries its tenant, or hangs on a turn that does.

Times are milliseconds since 1970 in UTC. `messages` is partitioned by month on PostgreSQL, which is why
its primary key ends with the time.
"""

from __future__ import annotations

import sqlalchemy as sa

from weftd.stores.records.schema import metadata

__all__ = [
    "answer_references",
    "chat_workers",
    "conversations",
    "messages",
    "ratings",
    "turn_events",
    "turns",
]

_RUNNING = sa.text("status = 'running'")
_REPLAYABLE = sa.text("replayable")

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("conversation_id", sa.String(256), primary_key=True),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
    # Where the next turn's messages go.
    sa.Column("next_position", sa.Integer, nullable=False),
    sa.Index("ix_conversations_latest", "tenant", "updated_at_ms", "conversation_id"),
)

# A running turn's answer is not here yet: it is stored with the turn's last event.
messages = sa.Table(
    "messages",
    metadata,
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

turns = sa.Table(
    "turns",
    metadata,
    sa.Column(
        "turn_id",
        sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
        primary_key=True,
        autoincrement=True,
    ),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("conversation_id", sa.String(256), nullable=False),
    sa.Column("request_id", sa.String(128), nullable=False),
    # Digest of the question: tells a repeated request from a reused id.
    sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
    # "running", "complete", "cancelled", "interrupted" or "failed".
    sa.Column("status", sa.String(16), nullable=False),
    # The worker that runs it; empty: whoever is asked may take it.
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    # StreamChatRequest without its messages, for whoever takes the turn over.
    sa.Column("options", sa.LargeBinary, nullable=False),
    # Where the answer goes among the messages; the question is at the position before.
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("last_seq", sa.Integer, nullable=False),
    sa.Column("started_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger),
    # Whether `turn_events` still has its events.
    sa.Column("replayable", sa.Boolean, nullable=False),
    sa.UniqueConstraint("tenant", "conversation_id", "request_id", name="uq_turns_request"),
    sa.Index(
        "uq_turns_running",
        "tenant",
        "conversation_id",
        unique=True,
        sqlite_where=_RUNNING,
        postgresql_where=_RUNNING,
    ),
    sa.Index("ix_turns_owner", "owner", sqlite_where=_RUNNING, postgresql_where=_RUNNING),
    sa.Index("ix_turns_ended", "ended_at_ms", sqlite_where=_REPLAYABLE, postgresql_where=_REPLAYABLE),
    sqlite_autoincrement=True,
)

# ChatEvents as they were sent, for replay.
turn_events = sa.Table(
    "turn_events",
    metadata,
    sa.Column("turn_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# The passages that an answer rests on. Rows of their own, so that a deleted document takes them along.
answer_references = sa.Table(
    "answer_references",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("conversation_id", sa.String(256), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("dataset_id", sa.String(128), nullable=False),
    sa.Column("document_id", sa.String(128), nullable=False),
    # Reference.
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Index("ix_answer_references_document", "tenant", "dataset_id", "document_id"),
)

ratings = sa.Table(
    "ratings",
    metadata,
    sa.Column("tenant", sa.String(128), primary_key=True),
    sa.Column("conversation_id", sa.String(256), primary_key=True),
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("rating", sa.String(8), nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("rated_at_ms", sa.BigInteger, nullable=False),
)

# Who is alive: a worker whose beat is old has lost its turns. By the clock of the database.
chat_workers = sa.Table(
    "chat_workers",
    metadata,
    sa.Column("worker_id", sa.String(64), primary_key=True),
    sa.Column("beat_at_ms", sa.BigInteger, nullable=False),
)

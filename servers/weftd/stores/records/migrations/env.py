"""Run by Alembic for each command; the connection comes from `migrate`, which holds the lock."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()

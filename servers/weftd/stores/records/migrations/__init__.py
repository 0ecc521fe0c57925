"""Alembic migrations of the records, run by `weftd.stores.records.migrate`."""

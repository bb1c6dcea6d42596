"""Alembic environment of the store; `mm4.store.upgrade` runs it."""

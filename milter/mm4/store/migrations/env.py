"""Runs the revisions on the connection that `mm4.store.upgrade` hands over.

The connection is already in a transaction that holds the lock against other processes, and its owner
commits: a migration is on disk as a whole or not at all.
"""

from alembic import context

from mm4.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a column only by rebuilding its table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

"""The life of a message: what tells a duplicate, when a RES is overdue, where an MMSC's own RES goes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"


def upgrade() -> None:
    """Add the columns, all of which may be empty, and the index of what a timer looks at."""
    op.add_column("messages", sa.Column("digest", sa.String()))
    op.add_column("messages", sa.Column("size", sa.BigInteger()))
    op.add_column("messages", sa.Column("expires_at", sa.DateTime(timezone=True)))
    op.add_column("messages", sa.Column("reply_to", sa.String()))
    op.add_column("messages", sa.Column("copy_of", sa.String()))
    op.add_column("transactions", sa.Column("due_at", sa.DateTime(timezone=True)))
    op.add_column("transactions", sa.Column("attempts", sa.Integer()))
    due = sa.text("due_at IS NOT NULL")
    op.create_index("ix_transactions_due", "transactions", ["due_at"], sqlite_where=due, postgresql_where=due)

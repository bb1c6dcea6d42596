"""Timers: which copy is being sent again, and under which queue id it went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"


def upgrade() -> None:
    """Add the columns, which may be empty, and the index by which a copy in the queue finds its transaction."""
    op.add_column("transactions", sa.Column("claimed_at", sa.DateTime(timezone=True)))
    op.add_column("transactions", sa.Column("sent_as", sa.String()))
    sent = sa.text("sent_as IS NOT NULL")
    op.create_index("ix_transactions_sent_as", "transactions", ["sent_as"], sqlite_where=sent, postgresql_where=sent)

"""Retention: the orders in which what is old is walked through."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"


def upgrade() -> None:
    """Add the indexes: messages by age, and events of no transaction by age."""
    op.create_index("ix_messages_recorded_at", "messages", ["recorded_at", "token"])
    alone = sa.text("coalesce(transaction_row, 0) = 0")
    op.create_index("ix_events_alone", "events", ["at", "id"], sqlite_where=alone, postgresql_where=alone)

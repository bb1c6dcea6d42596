"""Splits: a message to several sides is a row for each, which says how the further ones' mails are made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"


def upgrade() -> None:
    """Add the columns, and an index that holds the further sides only."""
    op.add_column("messages", sa.Column("split", sa.Text()))
    op.add_column("messages", sa.Column("split_of", sa.String()))
    splits = sa.text("split_of IS NOT NULL")
    op.create_index("ix_messages_split_of", "messages", ["split_of"], sqlite_where=splits, postgresql_where=splits)

"""Copies: an index by which the RES on its way is found for the REQ that waits for it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"


def upgrade() -> None:
    """Add the index; few messages are in it."""
    copies = sa.text("copy_of IS NOT NULL")
    op.create_index("ix_messages_copy_of", "messages", ["copy_of"], sqlite_where=copies, postgresql_where=copies)

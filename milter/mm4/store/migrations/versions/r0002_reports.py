"""Reports: what they say, and from which side a message came, to which a report about it goes back."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Add the columns; both may be empty, as in every row that is there."""
    op.add_column("messages", sa.Column("source", sa.String()))
    op.add_column("transactions", sa.Column("report", sa.String()))

"""Bounced answers: an index by which `mm4 check` finds the RES that did not arrive."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"


def upgrade() -> None:
    """Add the index; few events are in it."""
    bounced = sa.text("what = 'answer bounced'")
    op.create_index("ix_events_answer_bounced", "events", ["at"], sqlite_where=bounced, postgresql_where=bounced)

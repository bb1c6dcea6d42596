"""Finding a message by the queue id of its answer, as the mail queue shows it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"


def upgrade() -> None:
    """Add the index."""
    answered = sa.text("answer_queue_id IS NOT NULL")
    op.create_index(
        "ix_messages_answer_queue_id", "messages", ["answer_queue_id"], sqlite_where=answered, postgresql_where=answered
    )

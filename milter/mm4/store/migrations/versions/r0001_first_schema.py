"""The first schema: messages, transactions, events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None

# A revision never imports mm4.store.schema: it has to build the same tables when that has moved on.
_row_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables and their indexes."""
    op.create_table(
        "messages",
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("recorded_at", _time, nullable=False),
        sa.Column("accepted_at", _time),
        sa.Column("answered_at", _time),
        sa.Column("answer_queue_id", sa.String()),
        sa.Column("answer_to", sa.String()),
        sa.Column("answer_from", sa.String()),
        sa.Column("answer_type", sa.String()),
        sa.Column("answer_status", sa.String()),
        sa.Column("answer_text", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("token", name="pk_messages"),
    )
    op.create_index("ix_messages_queue_id", "messages", ["queue_id"])
    owed = sa.text("answer_to IS NOT NULL AND answered_at IS NULL")
    op.create_index("ix_messages_owed", "messages", ["recorded_at"], sqlite_where=owed, postgresql_where=owed)

    op.create_table(
        "transactions",
        sa.Column("id", _row_id, nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("transaction_id", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("originator", sa.String(), nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("status", sa.String()),
        sa.Column("ack_requested", sa.Boolean(), nullable=False),
        sa.Column("delivery_report", sa.Boolean(), nullable=False),
        sa.Column("read_reply", sa.Boolean(), nullable=False),
        sa.Column("updated_at", _time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_transactions"),
        sa.ForeignKeyConstraint(["token"], ["messages.token"], name="fk_transactions_token", ondelete="CASCADE"),
    )
    op.create_index("ix_transactions_token", "transactions", ["token"])
    op.create_index("ix_transactions_message_id", "transactions", ["message_id"])
    op.create_index("ix_transactions_correlation", "transactions", ["transaction_id", "peer", "direction"])

    op.create_table(
        "events",
        sa.Column("id", _row_id, nullable=False),
        sa.Column("transaction_row", _row_id),
        sa.Column("token", sa.String()),
        sa.Column("at", _time, nullable=False),
        sa.Column("what", sa.String(), nullable=False),
        sa.Column("queue_id", sa.String()),
        sa.Column("detail", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(
            ["transaction_row"], ["transactions.id"], name="fk_events_transaction_row", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_events_transaction_row", "events", ["transaction_row"])
    op.create_index("ix_events_token", "events", ["token"])

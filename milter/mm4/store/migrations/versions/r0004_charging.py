"""Charging records: what is charged, and in which file it stands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"

_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Add two tables; they stay empty where no records are wanted."""
    op.create_table(
        "cdr_files",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("folder", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("claimed_at", _TIME, nullable=False),
        sa.Column("written_at", _TIME),
        sa.Column("folder_identity", sa.String()),
        sa.Column("closed_at", _TIME),
        sa.PrimaryKeyConstraint("id", name="pk_cdr_files"),
        sqlite_autoincrement=True,
    )
    unclosed = sa.text("closed_at IS NULL")
    op.create_index("ix_cdr_files_host", "cdr_files", ["host"], sqlite_where=unclosed, postgresql_where=unclosed)
    op.create_table(
        "charges",
        sa.Column("id", _ROW_ID, nullable=False),
        sa.Column("token", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("requested_at", _TIME, nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("originator", sa.String(), nullable=False),
        sa.Column("recipient", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("transaction_id", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger()),
        sa.Column("expires_at", _TIME),
        sa.Column("ack_requested", sa.Boolean(), nullable=False),
        sa.Column("delivery_report", sa.Boolean(), nullable=False),
        sa.Column("read_reply", sa.Boolean(), nullable=False),
        sa.Column("status", sa.String()),
        sa.Column("mm_status", sa.String()),
        sa.Column("read_status", sa.String()),
        sa.Column("queue_id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("file_id", _ROW_ID),
        sa.PrimaryKeyConstraint("id", name="pk_charges"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_charges_once", "charges", ["token", "type", "originator", "recipient"], unique=True)
    op.create_index("ix_charges_at", "charges", ["at"])
    op.create_index("ix_charges_file_id", "charges", ["file_id"])

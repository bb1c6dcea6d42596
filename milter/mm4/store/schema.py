"""The tables of the store, as SQLAlchemy Core, for SQLite and PostgreSQL alike.

The migrations build the same tables step by step; a test holds the two together. A change here needs a new
revision in `migrations/versions` and its name at the end of `REVISIONS`.

A revision's name is two digits of generation and two of number. Within a generation only columns that may be
empty, tables and indexes are added, so that after a rollback of the package the version before works on the schema
of the version behind it: it writes what it knows and leaves the rest empty. What breaks that begins a generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    text,
)

__all__ = [
    "ALONE",
    "REVISION",
    "REVISIONS",
    "UtcDateTime",
    "batches",
    "cdr_files",
    "charges",
    "clean",
    "events",
    "generation",
    "limits",
    "messages",
    "metadata",
    "transactions",
]

_TOGETHER = 500

T = TypeVar("T")

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011")
"""Every schema revision this code knows, oldest first."""
REVISION = REVISIONS[-1]


def generation(revision: str) -> str:
    """The part of a revision's name that says with whose code it can be used."""
    return revision[:2]


def clean(text: str) -> str:
    """Make text that others wrote fit for any database: no lone surrogates, no NUL (PostgreSQL has none).

    Clean text comes back as it is. Whatever is written or searched goes through this, so that it is found.
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def batches(values: Sequence[T]) -> Iterator[list[T]]:
    """The values of one IN after the other: SQLite took 999 for long."""
    return (list(values[start : start + _TOGETHER]) for start in range(0, len(values), _TOGETHER))


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept in UTC. SQLite has no time zones: there the zone is dropped and put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; raises ValueError for a naive time, whose meaning nobody could tell later."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"time {value.isoformat()} has no time zone; hand in an aware datetime")
        return value if value.tzinfo is UTC else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give back an aware datetime in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# 2^31 rows are a busy operator's year; SQLite's own row number is an Integer of 64 bits.
_RowId = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

messages = Table(
    "messages",
    metadata,
    Column("token", String(), primary_key=True),
    Column("direction", String(), nullable=False),
    Column("peer", String(), nullable=False),
    Column("type", String(), nullable=False),
    Column("queue_id", String(), nullable=False),
    Column("host", String(), nullable=False),
    Column("recorded_at", UtcDateTime(), nullable=False),
    Column("accepted_at", UtcDateTime()),
    Column("answered_at", UtcDateTime()),
    Column("answer_queue_id", String()),
    Column("answer_to", String()),
    Column("answer_from", String()),
    Column("answer_type", String()),
    Column("answer_status", String()),
    Column("answer_text", LargeBinary()),
    Column("source", String()),
    Column("digest", String()),
    Column("size", BigInteger()),
    Column("expires_at", UtcDateTime()),
    Column("reply_to", String()),
    Column("copy_of", String()),
    # What the mail of a further side of a message to several is made of (JSON), and the first side's token.
    Column("split", Text()),
    Column("split_of", String()),
    Index("ix_messages_queue_id", "queue_id"),
    # The order in which retention walks; with the token, so that it has a place to go on from.
    Index("ix_messages_recorded_at", "recorded_at", "token"),
    Index("ix_messages_copy_of", "copy_of", sqlite_where=text("copy_of IS NOT NULL"),
          postgresql_where=text("copy_of IS NOT NULL")),
    Index("ix_messages_split_of", "split_of", sqlite_where=text("split_of IS NOT NULL"),
          postgresql_where=text("split_of IS NOT NULL")),
)

# `mm4 queue` asks for every RES that waits.
_answered = messages.c.answer_queue_id.is_not(None)
Index("ix_messages_answer_queue_id", messages.c.answer_queue_id, sqlite_where=_answered, postgresql_where=_answered)

# Holds only what is still owed, so that it stays small however many messages are kept.
_owed = messages.c.answer_to.is_not(None) & messages.c.answered_at.is_(None)
Index("ix_messages_owed", messages.c.recorded_at, sqlite_where=_owed, postgresql_where=_owed)

transactions = Table(
    "transactions",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("token", String(), ForeignKey("messages.token", ondelete="CASCADE"), nullable=False),
    Column("peer", String(), nullable=False),
    Column("direction", String(), nullable=False),
    Column("type", String(), nullable=False),
    Column("transaction_id", String(), nullable=False),
    Column("message_id", String(), nullable=False),
    Column("originator", String(), nullable=False),
    Column("recipient", String(), nullable=False),
    Column("state", String(), nullable=False),
    Column("status", String()),
    Column("ack_requested", Boolean(), nullable=False),
    Column("delivery_report", Boolean(), nullable=False),
    Column("read_reply", Boolean(), nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
    Column("report", String()),
    Column("due_at", UtcDateTime()),
    Column("attempts", Integer()),
    Column("claimed_at", UtcDateTime()),
    Column("sent_as", String()),
    Index("ix_transactions_token", "token"),
    Index("ix_transactions_message_id", "message_id"),
    # The id stands first: one index serves the correlation of a RES and `trace` by transaction id.
    Index("ix_transactions_correlation", "transaction_id", "peer", "direction"),
)

# Holds only what a timer looks at, so that it stays small however many transactions are kept.
_due = transactions.c.due_at.is_not(None)
Index("ix_transactions_due", transactions.c.due_at, sqlite_where=_due, postgresql_where=_due)

# By the queue id of a copy that was sent again.
_sent = transactions.c.sent_as.is_not(None)
Index("ix_transactions_sent_as", transactions.c.sent_as, sqlite_where=_sent, postgresql_where=_sent)

ALONE = "coalesce(transaction_row, 0) = 0"
"""Of no transaction: the other events go with theirs. SQLite would answer IS NULL from ix_events_transaction_row, and
sort all that it finds there; this only ix_events_alone knows."""

# An event may be about a token that this store does not hold (a backup was restored): no foreign key there.
events = Table(
    "events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("transaction_row", _RowId, ForeignKey("transactions.id", ondelete="CASCADE")),
    Column("token", String()),
    Column("at", UtcDateTime(), nullable=False),
    Column("what", String(), nullable=False),
    Column("queue_id", String()),
    Column("detail", Text()),
    Index("ix_events_transaction_row", "transaction_row"),
    Index("ix_events_token", "token"),
    # Of all events only these are asked for by what they are.
    Index("ix_events_answer_bounced", "at", sqlite_where=text("what = 'answer bounced'"),
          postgresql_where=text("what = 'answer bounced'")),
    Index("ix_events_alone", "at", "id", sqlite_where=text(ALONE), postgresql_where=text(ALONE)),
)

# A file of charging records, from the moment its records are chosen. AUTOINCREMENT: what is deleted gives no id back,
# so that a sequence number never means two records.
cdr_files = Table(
    "cdr_files",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("host", String(), nullable=False),
    Column("folder", String(), nullable=False),
    Column("name", String(), nullable=False),
    Column("format", String(), nullable=False),
    Column("records", Integer(), nullable=False),
    Column("claimed_at", UtcDateTime(), nullable=False),
    Column("written_at", UtcDateTime()),
    Column("folder_identity", String()),
    Column("closed_at", UtcDateTime()),
    sqlite_autoincrement=True,
)
_unclosed = cdr_files.c.closed_at.is_(None)
Index("ix_cdr_files_host", cdr_files.c.host, sqlite_where=_unclosed, postgresql_where=_unclosed)

# Copies and no foreign keys: a record is a fact, which outlives the transaction it was made of.
charges = Table(
    "charges",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("token", String(), nullable=False),
    Column("type", String(), nullable=False),
    Column("at", UtcDateTime(), nullable=False),
    Column("requested_at", UtcDateTime(), nullable=False),
    Column("peer", String(), nullable=False),
    Column("originator", String(), nullable=False),
    Column("recipient", String(), nullable=False),
    Column("message_id", String(), nullable=False),
    Column("transaction_id", String(), nullable=False),
    Column("size", BigInteger()),
    Column("expires_at", UtcDateTime()),
    Column("ack_requested", Boolean(), nullable=False),
    Column("delivery_report", Boolean(), nullable=False),
    Column("read_reply", Boolean(), nullable=False),
    Column("status", String()),
    Column("mm_status", String()),
    Column("read_status", String()),
    Column("queue_id", String(), nullable=False),
    Column("host", String(), nullable=False),
    Column("file_id", _RowId),
    Index("ix_charges_once", "token", "type", "originator", "recipient", unique=True),
    Index("ix_charges_at", "at"),
    Index("ix_charges_file_id", "file_id"),
    sqlite_autoincrement=True,
)

# How far rates are used and how often a content came; says nothing any more once `until` has passed.
limits = Table(
    "limits",
    metadata,
    Column("key", String(), primary_key=True),
    Column("until", UtcDateTime(), nullable=False),
    Column("used", Integer(), nullable=False),
    Index("ix_limits_until", "until"),
)

"""Long lists of transactions: newest first, filtered, a page a read, so that a reader of 10^6 rows needs no memory.

Pages go by row id (a row that comes in meanwhile moves none of them), and each is a read of its own: nothing stays
open between two, and the writer is never kept waiting. Filters have no index: they walk down the rows, once a list,
0.1 s for 10^6 rows in memory (measured). Two indexes by number would cost every message a tenth of its time in the
store (measured too), for a question that an operator asks now and then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, exists, func, literal_column, or_, select

from ..protocol.transaction import Direction, State
from .schema import events, messages, transactions

__all__ = [
    "PAGE", "Wanted", "by_queue", "held_rows", "listing", "lost_rows", "of_number", "owed_rows",
    "owing", "statistics",
]  # fmt: skip

PAGE = 1000
"""Rows of one read."""

_SET_BACK = timedelta(days=1)
"""How much a clock may have been set back."""

_AWAITED = (State.WAITING.value, State.OVERDUE.value)
_TYPES = tuple(
    f"MM4_{kind}.{half}" for kind in ("forward", "delivery_report", "read_reply_report") for half in ("REQ", "RES")
)

_ROW = (
    select(
        transactions,
        messages.c.recorded_at,
        messages.c.queue_id,
        messages.c.host,
        messages.c.answer_queue_id,
    )
    .join(messages, messages.c.token == transactions.c.token)
    .order_by(transactions.c.id.desc())
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What narrows a list; what is None does not. `number` is either end, as `Address.key` gives it."""

    peer: str | None = None
    direction: Direction | None = None
    type: str | None = None
    state: State | None = None
    number: str | None = None
    since: datetime | None = None
    """Recorded at this moment or later."""


def listing(connection: Connection, wanted: Wanted, before: int | None, size: int) -> list[dict[str, Any]]:
    """One page: the newest `size` transactions with a row id below `before` (None: from the newest on)."""
    rows = connection.execute(_ROW.where(transactions.c.id.in_(_ids(wanted, before, size))))
    return [
        {
            "id": row.id,
            "recorded_at": row.recorded_at.isoformat(),
            "peer": row.peer,
            "direction": row.direction,
            "type": row.type,
            "state": row.state,
            "status": row.status,
            "report": row.report,
            "originator": row.originator,
            "recipient": row.recipient,
            "message_id": row.message_id,
            "transaction_id": row.transaction_id,
            "token": row.token,
            "queue_id": row.queue_id,
            "host": row.host,
            "answer_queue_id": row.answer_queue_id,
            "updated_at": row.updated_at.isoformat(),
            "due_at": row.due_at and row.due_at.isoformat(),
            "attempts": row.attempts or 0,
        }
        for row in rows
    ]


def _ids(wanted: Wanted, before: int | None, size: int) -> Select[tuple[int]]:
    conditions: list[ColumnElement[bool]] = []
    values = {
        "peer": wanted.peer,
        "direction": wanted.direction and wanted.direction.value,
        "type": wanted.type,
        "state": wanted.state and wanted.state.value,
    }
    conditions += [transactions.c[name] == value for name, value in values.items() if value is not None]
    if wanted.number is not None:
        conditions.append(of_number(wanted.number))
    if before is not None:
        conditions.append(transactions.c.id < before)
    query = select(transactions.c.id)
    if wanted.since is not None:
        query = query.join(messages, messages.c.token == transactions.c.token)
        conditions += _since(wanted.since)
    return query.where(*conditions).order_by(transactions.c.id.desc()).limit(size)


def _since(moment: datetime) -> tuple[ColumnElement[bool], ...]:
    # What happens to a message happens after it is recorded, give or take what a clock was set back: by that most
    # rows are left out without a look at their message.
    return transactions.c.updated_at >= moment - _SET_BACK, messages.c.recorded_at >= moment


def of_number(number: str) -> ColumnElement[bool]:
    """Whether a number (an `Address.key`) is one end of a transaction."""
    return or_(transactions.c.originator == number, transactions.c.recipient == number)


def by_queue(connection: Connection, tokens: Iterable[str], queue_ids: Iterable[str]) -> list[dict[str, Any]]:
    """What is known of messages in the mail queue: by the tokens in their addresses, or by their queue ids.

    A queue id is that under which a message came in, or under which its answer went out.
    """
    tokens, queue_ids = list(tokens), list(queue_ids)
    named = (
        select(messages.c.token).where(messages.c.token.in_(tokens)),
        select(messages.c.token).where(messages.c.queue_id.in_(queue_ids)),
        select(messages.c.token).where(messages.c.answer_queue_id.in_(queue_ids)),
    )
    query = (
        select(
            messages.c.token,
            messages.c.queue_id,
            messages.c.answer_queue_id,
            messages.c.peer,
            messages.c.direction,
            transactions.c.message_id,
            transactions.c.transaction_id,
            transactions.c.recipient,
            transactions.c.state,
        )
        .join(transactions, messages.c.token == transactions.c.token, isouter=True)
        .where(or_(*(messages.c.token.in_(part) for part in named)))
        .order_by(transactions.c.id)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def owed_rows(connection: Connection, older_than: datetime, size: int) -> list[dict[str, Any]]:
    """The oldest `size` messages whose answer is not out though they were recorded before `older_than`."""
    query = (
        select(messages.c.token, messages.c.queue_id, messages.c.peer, messages.c.recorded_at, messages.c.accepted_at)
        # Written like the condition of ix_messages_owed, or the index would not be used.
        # What waits for an MMSC's or a peer's word is not owed yet.
        .where(messages.c.answer_to.is_not(None) & messages.c.answered_at.is_(None), messages.c.reply_to.is_(None))
        .where(messages.c.recorded_at < older_than)
        .order_by(messages.c.recorded_at)
        .limit(size)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


# Written like the condition of ix_messages_owed, or the index would not be used.
_HELD = (
    messages.c.answer_to.is_not(None) & messages.c.answered_at.is_(None),
    messages.c.reply_to.is_not(None),
)


def held_rows(connection: Connection, older_than: datetime, size: int) -> list[dict[str, Any]]:
    """The oldest `size` messages recorded before `older_than` whose RES waits for the word of an MMSC or of a peer."""
    query = (
        select(messages.c.token, messages.c.direction, messages.c.peer, messages.c.recorded_at)
        .where(*_HELD, messages.c.recorded_at < older_than)
        .order_by(messages.c.recorded_at)
        .limit(size)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


# Written like the condition of ix_events_answer_bounced, or the index would not be used.
_LOST = events.c.what == literal_column("'answer bounced'")
_later = events.alias("later")


def lost_rows(connection: Connection, since: datetime, size: int) -> list[dict[str, Any]]:
    """The newest `size` messages whose RES came back after `since`, and was not sent again by hand since."""
    sent_again = exists().where(
        _later.c.token == events.c.token, _later.c.id > events.c.id, _later.c.what.like("% sent by hand")
    )
    query = (
        select(messages.c.token, messages.c.peer, events.c.at, events.c.detail)
        .join(messages, messages.c.token == events.c.token)
        .where(_LOST, events.c.at > since, ~sent_again)
        .order_by(events.c.at.desc())
        .limit(size)
    )
    return [dict(row) for row in connection.execute(query).mappings()]


def owing(connection: Connection) -> dict[str, Any]:
    """How many RES are owed by us, how many wait for another's word, each with the time of the oldest. By index."""
    oldest = select(func.count(), func.min(messages.c.recorded_at))
    owed = oldest.where(
        messages.c.answer_to.is_not(None) & messages.c.answered_at.is_(None), messages.c.reply_to.is_(None)
    )
    number_owed, oldest_owed = connection.execute(owed).one()
    number_held, oldest_held = connection.execute(oldest.where(*_HELD)).one()
    return {
        "owed": number_owed,
        "owed_since": oldest_owed and oldest_owed.isoformat(),
        "held": number_held,
        "held_since": oldest_held and oldest_held.isoformat(),
    }


def statistics(connection: Connection, now: datetime, since: datetime | None) -> dict[str, Any]:
    """Counts by peer, direction, type, state and status; what waits, what is overdue, since when.

    `since` narrows the counts to what was recorded then or later; what waits is told in full. Types that are none of
    the six are one. Reads every transaction.
    """
    kind = case((transactions.c.type.in_(_TYPES), transactions.c.type), else_="other").label("kind")
    groups = (transactions.c.peer, transactions.c.direction, kind, transactions.c.state, transactions.c.status)
    counted = select(*groups, func.count().label("number")).group_by(*groups)
    if since is not None:
        counted = counted.join(messages, messages.c.token == transactions.c.token).where(*_since(since))
    waiting = (
        select(func.count(), func.min(messages.c.recorded_at))
        .join(transactions, messages.c.token == transactions.c.token)
        .where(transactions.c.state.in_(_AWAITED))
    )
    overdue = select(func.count()).where(
        (transactions.c.state == State.OVERDUE.value)
        | ((transactions.c.state == State.WAITING.value) & (transactions.c.due_at < now))
    )
    number_waiting, oldest_waiting = connection.execute(waiting).one()
    return {
        **owing(connection),
        "waiting": number_waiting,
        "waiting_since": oldest_waiting and oldest_waiting.isoformat(),
        "overdue": connection.execute(overdue).scalar_one(),
        "counts": [
            {
                "peer": row.peer,
                "direction": row.direction,
                "type": row.kind,
                "state": row.state,
                "status": row.status,
                "count": row.number,
            }
            for row in connection.execute(counted.order_by(*groups))
        ],
    }

"""What an operator changes by hand: a REQ is due now, a message is forgotten; and what was done to the store itself.

Each function runs on the writer's connection inside its transaction, so that what it looks at cannot change before
it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, delete, exists, insert, select, update

from ..protocol.transaction import Direction, State
from .schema import events, messages, transactions

__all__ = ["RETRIED", "forget", "hurry", "note", "notes", "waits"]

RETRIED = (State.WAITING, State.OVERDUE)
"""States in which a REQ can be sent again: nobody has answered it. What is FAILED was given up, its originator told and
its copy dropped."""

_STORE = "store"
"""In the place of a token: an event of the store itself. It is none, and so found by the index of events by token."""


def hurry(connection: Connection, rows: Sequence[int], at: datetime) -> int:
    """Make those of the transactions that have no answer OVERDUE and due at `at`; gives how many they are.

    What is OVERDUE and due later is being sent just now, and left alone. The time that it is sent by hand does not
    count against `ack.retry`, or the last attempt would only be the end of it.
    """
    found = connection.execute(
        select(transactions.c.id, transactions.c.token)
        .where(
            transactions.c.id.in_(rows),
            transactions.c.direction == Direction.OUT.value,
            transactions.c.state.in_([state.value for state in RETRIED]),
            transactions.c.claimed_at.is_(None),
            (transactions.c.state != State.OVERDUE.value)
            | transactions.c.due_at.is_(None)
            | (transactions.c.due_at <= at),
        )
        .with_for_update()
    ).all()
    if not found:
        return 0
    connection.execute(
        update(transactions)
        .where(transactions.c.id.in_([row.id for row in found]))
        .values(
            state=State.OVERDUE.value,
            due_at=at,
            attempts=case((transactions.c.attempts > 0, transactions.c.attempts - 1), else_=0),
            updated_at=at,
        )
    )
    note = {"at": at, "what": "due now, by hand", "queue_id": None, "detail": None}
    connection.execute(insert(events), [{"transaction_row": row.id, "token": row.token, **note} for row in found])
    return len(found)


def waits(connection: Connection, token: str) -> str | None:
    """What the message still waits for, None where nothing."""
    rows = connection.execute(
        select(messages.c.answer_to, messages.c.answered_at, messages.c.reply_to).where(
            messages.c.token.in_([token, *_passing(connection, token)])
        )
    ).all()
    for row in rows:
        if row.answer_to is not None and row.answered_at is None:
            if row.reply_to is not None:
                return "its RES waits for the word of an MMSC or of the peer"
            return "its RES is owed to the peer"
    states = connection.execute(select(transactions.c.state).where(transactions.c.token == token)).scalars().all()
    if any(state in (State.WAITING.value, State.OVERDUE.value) for state in states):
        return "the peer's RES is awaited"
    return None


def forget(connection: Connection, token: str, force: bool) -> str | None:
    """Remove a message with its transactions and events, and the RES to it that passed through.

    Gives why not, None where it is gone. What still waits for an answer, in either direction, stays without `force`.
    """
    reason = waits(connection, token)
    if reason is not None and not force:
        return reason
    tokens = [token, *_passing(connection, token)]
    # The events of its transactions go with them; those of the message have no foreign key.
    connection.execute(delete(events).where(events.c.token.in_(tokens)))
    gone = connection.execute(delete(messages).where(messages.c.token.in_(tokens))).rowcount
    return None if gone else "the store has no such message"


def _passing(connection: Connection, token: str) -> Sequence[str]:
    """The tokens of the RES of an MMSC or a peer to this message: they have no transaction of their own."""
    query = select(messages.c.token).where(
        messages.c.copy_of == token, ~exists().where(transactions.c.token == messages.c.token)
    )
    return connection.execute(query).scalars().all()


def note(connection: Connection, at: datetime, what: str, detail: str) -> None:
    """Keep what was done to the store itself. Works on every revision of the schema."""
    connection.execute(insert(events).values(token=_STORE, at=at, what=what, detail=detail))


def notes(connection: Connection, since: datetime) -> list[dict[str, Any]]:
    """What was done to the store itself after `since`, oldest first: at, what, detail."""
    query = (
        select(events.c.at, events.c.what, events.c.detail)
        .where(events.c.token == _STORE, events.c.at > since)
        .order_by(events.c.id)
    )
    return [dict(row) for row in connection.execute(query).mappings()]

"""What an operator changes by hand: a REQ is due now, a message is forgotten.

Each function runs on the writer's connection inside its transaction, so that what it looks at cannot change before
it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from ..protocol.transaction import Direction, State
from .schema import events, messages, transactions

__all__ = ["RETRIED", "forget", "hurry", "waits"]

RETRIED = (State.WAITING, State.OVERDUE, State.FAILED)
"""States in which a REQ can be sent again: nobody has answered it."""


def hurry(connection: Connection, rows: Sequence[int], at: datetime) -> int:
    """Make those of the transactions that have no answer due at `at`; gives how many they are.

    One that had FAILED is OVERDUE again, or no timer would look at it.
    """
    found = transactions.c.id.in_(rows) & (transactions.c.direction == Direction.OUT.value)
    connection.execute(
        update(transactions)
        .where(found, transactions.c.state == State.FAILED.value)
        .values(state=State.OVERDUE.value, updated_at=at)
    )
    states = [state.value for state in RETRIED]
    return connection.execute(
        update(transactions).where(found, transactions.c.state.in_(states)).values(due_at=at)
    ).rowcount


def waits(connection: Connection, token: str) -> str | None:
    """What the message still waits for, None where nothing."""
    row = connection.execute(
        select(messages.c.answer_to, messages.c.answered_at).where(messages.c.token == token)
    ).first()
    if row is not None and row.answer_to is not None and row.answered_at is None:
        return "its RES is owed to the peer"
    states = connection.execute(select(transactions.c.state).where(transactions.c.token == token)).scalars().all()
    if any(state in (State.WAITING.value, State.OVERDUE.value) for state in states):
        return "the peer's RES is awaited"
    return None


def forget(connection: Connection, token: str, force: bool) -> str | None:
    """Remove a message with its transactions and events; gives why not, None where it is gone.

    What still waits for an answer, in either direction, stays without `force`.
    """
    reason = waits(connection, token)
    if reason is not None and not force:
        return reason
    # The events of its transactions go with them; those of the message have no foreign key.
    connection.execute(delete(events).where(events.c.token == token))
    gone = connection.execute(delete(messages).where(messages.c.token == token)).rowcount
    return None if gone else "the store has no such message"

"""Which message a returned copy is of: what a bounce brings back that names no token of ours. Reads only."""

from __future__ import annotations

from sqlalchemy import Connection, select

from ..protocol.transaction import Direction, Message, State
from .records import load
from .schema import transactions

__all__ = ["load_returned"]

MOST = 20
"""Messages of one transaction id: a peer that uses one id for all must not make us read all."""


def load_returned(
    connection: Connection, transaction_id: str, message_id: str | None, direction: Direction
) -> tuple[Message, ...]:
    """Read the messages that went this way under these ids, newest first; `message_id` None does not narrow."""
    query = select(transactions.c.token, transactions.c.id).where(
        transactions.c.transaction_id == transaction_id,
        transactions.c.direction == direction.value,
        # A copy of a message that had come before went nowhere: what comes back is the first.
        transactions.c.state != State.DUPLICATE.value,
    )
    if message_id is not None:
        query = query.where(transactions.c.message_id == message_id)
    rows = connection.execute(query.order_by(transactions.c.id.desc()).limit(MOST))
    found = (load(connection, token) for token in dict.fromkeys(row.token for row in rows))
    return tuple(message for message in found if message is not None)

"""The life of a message as `mm4 trace` shows it: every transaction that an identifier names, with its events.

What the message's own row says (recorded, accepted, answered) and the table of events become one list in
time order, so that the hot path writes no event at all. Reads only.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, bindparam, select, union

from .schema import events, messages, transactions

__all__ = ["trace"]

_NAMED: BindParameter[str] = bindparam("named")
# Four searches by index; one condition with OR over two tables would read every row.
_ROWS = union(
    select(transactions.c.id).where(transactions.c.message_id == _NAMED),
    select(transactions.c.id).where(transactions.c.transaction_id == _NAMED),
    select(transactions.c.id).where(transactions.c.token == _NAMED),
    select(transactions.c.id)
    .join(messages, messages.c.token == transactions.c.token)
    .where(messages.c.queue_id == _NAMED),
).subquery()
_TRANSACTIONS = (
    select(
        transactions,
        messages.c.queue_id,
        messages.c.host,
        messages.c.recorded_at,
        messages.c.accepted_at,
        messages.c.answered_at,
        messages.c.answer_queue_id,
        messages.c.answer_type,
        messages.c.answer_status,
    )
    .join(messages, messages.c.token == transactions.c.token)
    .where(transactions.c.id.in_(select(_ROWS.c.id)))
    .order_by(messages.c.recorded_at, transactions.c.id)
)
_OF_ROWS = select(events).where(events.c.transaction_row.in_(select(_ROWS.c.id)))
_OF_TOKENS = select(events).where(
    events.c.transaction_row.is_(None),
    events.c.token.in_(select(transactions.c.token).where(transactions.c.id.in_(select(_ROWS.c.id)))),
)


def trace(connection: Connection, identifier: str) -> list[dict[str, Any]]:
    """Give every transaction whose message id, transaction id, token or queue id is the identifier.

    Quotes around the identifier are left out of account, as ids are kept without them.
    """
    named = {"named": _unquoted(identifier)}
    rows = connection.execute(_TRANSACTIONS, named).all()
    if not rows:
        return []
    of_row: dict[int, list[Row[Any]]] = defaultdict(list)
    of_token: dict[str, list[Row[Any]]] = defaultdict(list)
    for happened in connection.execute(_OF_ROWS, named):
        of_row[happened.transaction_row].append(happened)
    for happened in connection.execute(_OF_TOKENS, named):
        of_token[happened.token].append(happened)
    return [
        {
            "peer": row.peer,
            "direction": row.direction,
            "type": row.type,
            "transaction_id": row.transaction_id,
            "message_id": row.message_id,
            "originator": row.originator,
            "recipient": row.recipient,
            "report": row.report,
            "state": row.state,
            "status": row.status,
            "queue_id": row.queue_id,
            "host": row.host,
            "events": _events(row, of_row[row.id] + of_token[row.token]),
        }
        for row in rows
    ]


def _unquoted(identifier: str) -> str:
    if len(identifier) > 1 and identifier[0] == identifier[-1] and identifier[0] in "\"'":
        return identifier[1:-1]
    return identifier


def _events(row: Row[Any], happened: list[Row[Any]]) -> list[dict[str, Any]]:
    derived: list[tuple[datetime, str, str | None, str | None]] = [(row.recorded_at, "recorded", row.queue_id, None)]
    if row.accepted_at is not None:
        derived.append((row.accepted_at, "accepted by Postfix", row.queue_id, None))
    if row.answered_at is not None:
        what = f"{row.answer_type} {row.answer_status} submitted" if row.answer_type else "answer submitted"
        derived.append((row.answered_at, what, row.answer_queue_id, None))
    kept = [(event.at, event.what, event.queue_id, event.detail) for event in sorted(happened, key=_row_id)]
    # The sort is stable: at the same moment what the message's row says stands first.
    return [
        {"at": at.isoformat(), "what": what, "queue_id": queue_id, "detail": detail}
        for at, what, queue_id, detail in sorted(derived + kept, key=lambda event: event[0])
    ]


def _row_id(event: Row[Any]) -> int:
    return int(event.id)

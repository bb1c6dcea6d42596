"""The life of a message as `mm4 trace` shows it: every transaction that an identifier names, with its events.

What the message's own row says (recorded, accepted, answered) and the table of events become one list in
time order, so that the hot path writes no event at all. Reads only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from heapq import merge
from typing import Any

from sqlalchemy import BindParameter, Connection, Row, Select, bindparam, exists, select, union

from .listing import of_number
from .schema import events, messages, transactions

__all__ = ["MOST", "trace", "trace_number", "whole"]

_TOGETHER = 500
"""Rows whose events are read at once."""
_ROW_DIGITS = 18
"""Digits of a row id: more fit no column."""

MOST = 1000
"""Transactions that are looked at for one identifier, the newest: a peer may use an id as often as it likes."""

_own = transactions.alias()
_first = messages.alias()
_NAMED: BindParameter[str] = bindparam("named")
# Searches by index; one condition with OR over two tables would read every row.
_BY_NAME = union(
    select(transactions.c.id).where(transactions.c.message_id == _NAMED),
    select(transactions.c.id).where(transactions.c.transaction_id == _NAMED),
    select(transactions.c.id).where(transactions.c.token == _NAMED),
    # A RES that passes through has a token of its own and no transaction: what it answers has.
    select(transactions.c.id)
    .join(messages, messages.c.copy_of == transactions.c.token)
    .where(messages.c.token == _NAMED, ~exists().where(_own.c.token == messages.c.token)),
    # The parts for further sides came by the queue id of the first one's.
    select(transactions.c.id)
    .join(messages, messages.c.token == transactions.c.token)
    .join(_first, _first.c.token == messages.c.split_of)
    .where(_first.c.queue_id == _NAMED, messages.c.split_of.is_not(None)),
    *(
        select(transactions.c.id)
        .join(messages, messages.c.token == transactions.c.token)
        # Not null is said for ix_messages_answer_queue_id, which holds nothing else.
        .where(column == _NAMED, column.is_not(None))
        for column in (messages.c.queue_id, messages.c.answer_queue_id)
    ),
).subquery()
_LIFE = select(
    transactions,
    *(column for column in messages.c if column.name not in transactions.c),
).join(messages, messages.c.token == transactions.c.token)


def trace(connection: Connection, identifier: str, limit: int = MOST) -> list[dict[str, Any]]:
    """Give every transaction whose message id, transaction id, token or queue id is the identifier, in time order.

    The queue id may be that of the message or of its answer. Quotes around the identifier are left out of account, as
    ids are kept without them. Of more than `limit` the newest.
    """
    return [_traced(row, happened) for row, happened in _lives(connection, _named(identifier), limit)]


def trace_number(connection: Connection, number: str, limit: int) -> list[dict[str, Any]]:
    """Give the newest transactions of a number (as `Address.key` gives it), whichever end it is of, newest first."""
    newest = select(transactions.c.id).where(of_number(number)).order_by(transactions.c.id.desc()).limit(limit)
    found = list(_lives(connection, newest, limit))
    found.sort(key=lambda life: life[0].id, reverse=True)
    return [_traced(row, happened) for row, happened in found]


def whole(connection: Connection, identifier: str, limit: int = MOST) -> list[dict[str, Any]]:
    """As `trace`, with everything that is kept, the text of the answer included; the identifier may be a row id too."""
    ids = _named(identifier)
    if identifier.isascii() and identifier.isdigit() and len(identifier) <= _ROW_DIGITS:
        by_row = select(transactions.c.id).where(transactions.c.id == int(identifier))
        ids = select(union(ids, by_row).subquery().c.id)
    found = []
    for row, happened in _lives(connection, ids, limit):
        known = {name: _plain(value) for name, value in row._mapping.items()}
        found.append({**known, "events": _events(row, happened)})
    return found


def _named(identifier: str) -> Select[tuple[int]]:
    return select(_BY_NAME.c.id).params(named=_unquoted(identifier))


def _lives(connection: Connection, ids: Select[tuple[int]], limit: int) -> Iterator[tuple[Row[Any], list[Row[Any]]]]:
    """The rows with what happened to each, in time order."""
    rows = connection.execute(_LIFE.where(transactions.c.id.in_(ids)).order_by(transactions.c.id.desc()).limit(limit))
    newest = sorted(rows.all(), key=lambda row: (row.recorded_at, row.id))
    for first in range(0, len(newest), _TOGETHER):
        part = newest[first : first + _TOGETHER]
        of_row: dict[int, list[Row[Any]]] = defaultdict(list)
        of_token: dict[str, list[Row[Any]]] = defaultdict(list)
        in_row = events.c.transaction_row.in_([row.id for row in part])
        for happened in connection.execute(select(events).where(in_row)):
            of_row[happened.transaction_row].append(happened)
        in_token = events.c.token.in_({row.token for row in part})
        for happened in connection.execute(select(events).where(in_token, events.c.transaction_row.is_(None))):
            of_token[happened.token].append(happened)
        yield from ((row, of_row[row.id] + of_token[row.token]) for row in part)


def _traced(row: Row[Any], happened: list[Row[Any]]) -> dict[str, Any]:
    return {
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
        "events": _events(row, happened),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value.decode("ascii", "backslashreplace") if isinstance(value, bytes) else value


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
    derived.sort(key=lambda event: event[0])
    # What was kept stays in the order in which it happened, also where the clock was set back between. At the same
    # moment what the message's row says stands first.
    return [
        {"at": at.isoformat(), "what": what, "queue_id": queue_id, "detail": detail}
        for at, what, queue_id, detail in merge(derived, kept, key=lambda event: event[0])
    ]


def _row_id(event: Row[Any]) -> int:
    return int(event.id)

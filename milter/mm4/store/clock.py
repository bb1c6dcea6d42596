"""A clock that was set back: what it had put into the future is due again as soon as the peers' entries say.

No RES may take longer than its peer's entry says, counted from now, and no claim lasts longer than LEASE; what is due
later than both was put down by a clock that was ahead. Each host mends what it wrote itself: of another's clock
it knows nothing. Messages that Postfix has not shown to have are left, they are looked at in growing pauses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, select, update

from ..protocol.retry import Retry
from ..protocol.transaction import State
from .schema import batches, messages, transactions
from .timers import LEASE

__all__ = ["Ahead", "ahead", "set_due"]

_TIMED = (State.WAITING.value, State.OVERDUE.value, State.ANSWERED.value, State.FAILED.value)
_NOW = bindparam("now", type_=transactions.c.due_at.type)
_AHEAD = (
    select(
        transactions.c.id,
        transactions.c.peer,
        transactions.c.state,
        transactions.c.attempts,
        transactions.c.claimed_at,
        transactions.c.due_at,
    )
    .join(messages, messages.c.token == transactions.c.token)
    # Written like the condition of ix_transactions_due, or the index would not be used.
    .where(transactions.c.due_at.is_not(None), transactions.c.due_at > _NOW)
    .where(
        transactions.c.peer.in_(bindparam("peers", expanding=True)),
        transactions.c.state.in_(_TIMED),
        messages.c.host == bindparam("host"),
    )
    .order_by(transactions.c.due_at)
    .limit(bindparam("most"))
)
_SET_DUE = (
    update(transactions)
    # What was answered or taken meanwhile has another time, and keeps it.
    .where(transactions.c.id == bindparam("a_row"), transactions.c.due_at == bindparam("before", type_=_NOW.type))
    .values(due_at=bindparam("a_due", type_=_NOW.type))
)


@dataclass(frozen=True, slots=True)
class Ahead:
    """A transaction that is due later than it can be, and when it is due in truth."""

    row: int
    before: datetime
    due_at: datetime


def ahead(connection: Connection, now: datetime, limit: int, retries: Mapping[str, Retry], host: str) -> list[Ahead]:
    """Up to `limit` transactions of this host that a clock put too far ahead; only reads."""
    allowed: dict[timedelta, list[str]] = {}
    for peer, retry in retries.items():
        allowed.setdefault(max(retry.longest, LEASE), []).append(peer)
    found: list[Ahead] = []
    for longest, peers in allowed.items():
        for some in batches(peers):
            values = {"now": now + longest, "peers": some, "host": host, "most": limit}
            for row in connection.execute(_AHEAD, values):
                if row.state == State.FAILED.value or row.claimed_at is not None:
                    due_at = now + LEASE
                elif row.state == State.OVERDUE.value:
                    due_at = now
                else:
                    due_at = now + retries[row.peer].pause(row.attempts or 0)
                found.append(Ahead(row.id, row.due_at, due_at))
    return found[:limit]


def set_due(connection: Connection, found: Sequence[Ahead]) -> None:
    """Have them due when they are in truth, unless something has happened to them meanwhile."""
    changes = [{"a_row": one.row, "before": one.before, "a_due": one.due_at} for one in found]
    if changes:
        connection.execute(_SET_DUE, changes)

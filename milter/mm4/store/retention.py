"""What leaves the store by its age, in batches that nobody waits for.

A look reads, without a lock, a bounded number of rows in the order of an index, from where the last look ended, and
gives the keys of those that may go. `remove` takes few of them in one transaction: it looks at each again under
the lock, removes at most ROWS rows, and begins nothing new after SECONDS. Each batch stands for itself, so that whoever
is interrupted goes on from the beginning. Of several hosts on one PostgreSQL one at a time removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    Select,
    Table,
    TextClause,
    and_,
    bindparam,
    case,
    delete,
    exists,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)

from ..protocol.transaction import State
from .schema import ALONE, cdr_files, charges, events, limits, messages, transactions

__all__ = ["LOOK", "ROWS", "SECONDS", "WALKS", "Ages", "Found", "Removed", "look", "remove"]

LOOK = 500
"""Rows that one look reads of the index: a millisecond, and no lock."""
ROWS = 200
"""Most rows that one transaction removes, whatever a message has of recipients and events."""
TOGETHER = 10
"""Messages whose rows are removed by the same statements; the time is looked at between."""
SECONDS = 0.005
"""After which a transaction begins nothing new: others wait for the write lock of SQLite meanwhile."""

_ADVISORY_LOCK = 0x6D6D3472  # "mm4r"; as that of a migration, the same number in every process


@dataclass(frozen=True, slots=True)
class Ages:
    """What is old: settled before `settled`, or still open and from before `open`; `now` for what ends by itself."""

    now: datetime
    settled: datetime
    open: datetime

    @classmethod
    def of(cls, now: datetime, retention: timedelta) -> Ages:
        """What is still open stays for twice as long: whoever waits for it has given up long ago."""
        return cls(now, now - retention, now - 2 * retention)


@dataclass(frozen=True, slots=True)
class Found:
    """What one look gave: the keys of rows that may go, and where the next look goes on (None: at the end)."""

    keys: tuple[Any, ...]
    after: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True)
class Removed:
    """What one transaction did: rows that went, by table; how many of the keys are done; how long it took.

    `elsewhere` where another host removes at this moment, and nothing was done here.
    """

    rows: dict[str, int]
    done: int
    seconds: float
    elsewhere: bool = False


def _keys(name: str) -> BindParameter[Any]:
    return bindparam(name, expanding=True)


_TOKENS = _keys("tokens")
_IDS = _keys("ids")
_MOST: BindParameter[int] = bindparam("most")


def _age(name: str) -> BindParameter[Any]:
    return bindparam(name, type_=messages.c.recorded_at.type)


# --- what is open

_WAITING_STATES = (State.RECORDED.value, State.WAITING.value)
# A token may lie in the queue as long as Postfix has not shown to have the message, and as long as a RES is owed.
_OPEN_MESSAGE = or_(
    messages.c.accepted_at.is_(None), and_(messages.c.answer_to.is_not(None), messages.c.answered_at.is_(None))
)
# Whatever is due is not over for a timer; what waits for a RES has something due.
_OPEN_TRANSACTION = exists().where(
    transactions.c.token == messages.c.token,
    or_(transactions.c.due_at.is_not(None), transactions.c.state.in_(_WAITING_STATES)),
)
_SETTLED = select(messages.c.token).where(
    messages.c.token.in_(_TOKENS),
    messages.c.recorded_at < _age("settled"),
    or_(messages.c.recorded_at < _age("open"), ~or_(_OPEN_MESSAGE, _OPEN_TRANSACTION)),
)
# PostgreSQL: with both locked nobody opens again what is about to go, and nobody is waited for: what another has stays.
_LOCK_MESSAGES = (
    select(messages.c.token).where(messages.c.token.in_(_TOKENS)).order_by(messages.c.token)
    .with_for_update(skip_locked=True)
)  # fmt: skip
_LOCK_TRANSACTIONS = (
    select(transactions.c.id)
    .where(transactions.c.token.in_(_TOKENS))
    .order_by(transactions.c.id)
    .with_for_update(skip_locked=True)
)
_TRANSACTIONS = select(transactions.c.id, transactions.c.token).where(transactions.c.token.in_(_TOKENS))

# --- the rows of messages

_ROWS_OF = {
    "events": (
        select(events.c.id).where(events.c.token.in_(_TOKENS)).limit(_MOST),
        # Those that the first schema wrote have no token.
        select(events.c.id)
        .join(transactions, transactions.c.id == events.c.transaction_row)
        .where(transactions.c.token.in_(_TOKENS))
        .limit(_MOST),
    ),
    "transactions": (select(transactions.c.id).where(transactions.c.token.in_(_TOKENS)).limit(_MOST),),
}
_DELETE: dict[str, Delete] = {
    "events": delete(events).where(events.c.id.in_(_IDS)),
    "transactions": delete(transactions).where(transactions.c.id.in_(_IDS)),
    "messages": delete(messages).where(messages.c.token.in_(_TOKENS)),
    "charges": delete(charges).where(charges.c.id.in_(_IDS)),
    "cdr_files": delete(cdr_files).where(cdr_files.c.id.in_(_IDS)),
    # What is counted anew meanwhile stays, and nobody waits for who counts.
    "limits": delete(limits).where(
        limits.c.key.in_(
            select(limits.c.key)
            .where(limits.c.key.in_(_IDS), limits.c.until <= _age("now"))
            .with_for_update(skip_locked=True)
        )
    ),
}
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key)")


def _messages(connection: Connection, tokens: Sequence[Any], ages: Ages, most: int) -> tuple[dict[str, int], bool]:
    """Remove up to `most` rows of these messages, last the messages themselves; gives the rows, and whether it is all.

    `most` is more than the messages are.
    """
    if connection.dialect.name == "postgresql":
        tokens = connection.execute(_LOCK_MESSAGES, {"tokens": list(tokens)}).scalars().all()
        locked = set(connection.execute(_LOCK_TRANSACTIONS, {"tokens": list(tokens)}).scalars())
        every = connection.execute(_TRANSACTIONS, {"tokens": list(tokens)})
        theirs = {row.token for row in every if row.id not in locked}
        tokens = [token for token in tokens if token not in theirs]
    tokens = _settled(connection, tokens, ages)
    rows = dict.fromkeys(("events", "transactions", "messages"), 0)
    if not tokens:
        return rows, True
    left = most - len(tokens)
    for table, queries in _ROWS_OF.items():
        for query in queries:
            # One more than may go says whether there are more.
            ids = connection.execute(query, {"tokens": tokens, "most": left + 1}).scalars().all()
            if ids[:left]:
                connection.execute(_DELETE[table], {"ids": ids[:left]})
                rows[table] += len(ids[:left])
            if len(ids) > left:
                return rows, False
            left -= len(ids)
    rows["messages"] = connection.execute(_DELETE["messages"], {"tokens": tokens}).rowcount
    return rows, True


def _settled(connection: Connection, tokens: Sequence[Any], ages: Ages) -> list[str]:
    values = {"tokens": list(tokens), "settled": ages.settled, "open": ages.open}
    return list(connection.execute(_SETTLED, values).scalars()) if tokens else []


# --- walks

_Which = Literal["settled", "now"]


@dataclass(frozen=True, slots=True)
class _Walk:
    """How one table is walked: its columns in the order of an index, the last of them its key; and what stays."""

    table: Table
    position: tuple[ColumnElement[Any], ...]
    old: tuple[ColumnElement[bool] | TextClause, ...]
    which: _Which
    stays: ColumnElement[bool] | None = None

    def asking(self, first: bool) -> Select[Any]:
        """The look: position, and whether the row stays."""
        stays = case((self.stays, 1), else_=0) if self.stays is not None else literal_column("0")
        query = select(*self.position, stays)
        query = query.where(*self.old).order_by(*self.position).limit(LOOK)
        if first:
            return query
        values = [bindparam(f"after{n}", type_=column.type) for n, column in enumerate(self.position)]
        # The first column by itself: no index of both is needed then to go on from there.
        return query.where(self.position[0] >= values[0], tuple_(*self.position) > tuple_(*values))


_OLD = _age("old")
_WALKS = {
    "messages": _Walk(
        messages, (messages.c.recorded_at, messages.c.token), (messages.c.recorded_at < _OLD,), "settled"
    ),
    # Of no transaction, and of no message that is here: what came in and fitted nothing, what was done to the store.
    "events": _Walk(
        events,
        (events.c.at, events.c.id),
        (text(ALONE), events.c.at < _OLD),
        "settled",
        exists().where(messages.c.token == events.c.token),
    ),
    # What stands in no file yet nobody has billed.
    "charges": _Walk(
        charges,
        (charges.c.at, charges.c.id),
        (charges.c.at < _OLD,),
        "settled",
        ~exists().where(cdr_files.c.id == charges.c.file_id, cdr_files.c.closed_at.is_not(None)),
    ),
    # A row for each file: few.
    "cdr_files": _Walk(
        cdr_files,
        (cdr_files.c.id,),
        (cdr_files.c.closed_at < _OLD,),
        "settled",
        exists().where(charges.c.file_id == cdr_files.c.id),
    ),
    "limits": _Walk(limits, (limits.c.until, limits.c.key), (limits.c.until <= _OLD,), "now"),
}
WALKS = tuple(_WALKS)
"""Tables that are walked, one after the other; transactions go with their messages."""
_LOOKS = {(name, first): walk.asking(first) for name, walk in _WALKS.items() for first in (True, False)}


def look(connection: Connection, walk: str, ages: Ages, after: tuple[Any, ...] | None) -> Found:
    """The next LOOK rows of a walk that are old, after the position `after` (None: from the oldest). Only reads."""
    values = {f"after{n}": value for n, value in enumerate(after or ())}
    values["old"] = getattr(ages, _WALKS[walk].which)
    rows: list[tuple[Any, ...]] = [tuple(row) for row in connection.execute(_LOOKS[walk, after is None], values)]
    keys = [key for *_, key, stays in rows if not stays]
    if walk == "messages":
        settled = set(_settled(connection, keys, ages))
        keys = [key for key in keys if key in settled]
    return Found(tuple(keys), rows[-1][:-1] if len(rows) == LOOK else None)


def remove(
    connection: Connection,
    walk: str,
    keys: Sequence[Any],
    ages: Ages,
    clock: Callable[[], float] = time.monotonic,
) -> Removed:
    """Remove what the first of the keys name, in the transaction that is open: at most ROWS rows, in about SECONDS."""
    begun = clock()
    if connection.dialect.name == "postgresql" and not connection.execute(_TRY_LOCK, {"key": _ADVISORY_LOCK}).scalar():
        return Removed({}, 0, 0.0, elsewhere=True)
    done, total, rows = 0, 0, dict[str, int]()
    while done < len(keys) and total + TOGETHER < ROWS and (not done or clock() - begun < SECONDS):
        some = keys[done : done + TOGETHER]
        if walk == "messages":
            removed, whole = _messages(connection, some, ages, ROWS - total)
        else:
            values = {"ids": list(some), "now": ages.now} if walk == "limits" else {"ids": list(some)}
            removed, whole = {walk: connection.execute(_DELETE[walk], values).rowcount}, True
        total += sum(removed.values())
        rows = {table: rows.get(table, 0) + removed.get(table, 0) for table in {**rows, **removed}}
        if not whole:
            break
        done += len(some)
    return Removed({table: count for table, count in rows.items() if count}, done, clock() - begun)

"""What time does to a transaction: overdue, sent again, failed. Every step is one write operation of bounded size.

Any number of processes and hosts may ask: whoever's write comes first has the row, and others pass over it. A copy
is claimed, submitted, and then noted. The claim lasts for LEASE; whoever dies between leaves a claim that runs out,
and the same attempt is made again: a crash repeats at most one copy and forgets none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import Connection, Row, bindparam, exists, func, insert, or_, select, update

from ..protocol.retry import TRANSIENT, Retry
from ..protocol.transaction import State
from .schema import batches, events, messages, transactions

__all__ = [
    "LEASE",
    "Hindrance",
    "Late",
    "any_due",
    "any_to_send",
    "awaited",
    "claim",
    "not_sent",
    "overdue",
    "sent_again",
    "settle",
]

LEASE = timedelta(minutes=2)
"""How long a copy under way belongs to who claimed it. Several times what a submission can take."""
ABANDONED = timedelta(days=1)
"""After which nobody expects a host any more to send the copies that lie on it."""
UNDECIDED = timedelta(minutes=1)
"""Shortest pause before a row is looked at again of which Postfix has not yet shown that it has the message."""

LOOKED_AT = 100
"""Rows that one `claim` looks at: most of what lies in the queue of a peer that is away is only put off."""

_HELD_BACK = "held back"
_FREE = "no longer held back"


class Hindrance(Protocol):
    """What keeps messages of this host from being sent again: their first copy is not out yet."""

    def hinders(self, peer: str, recipient: str, queue_ids: Sequence[str | None]) -> str | None:
        """Why nothing is to be sent now to a recipient whose mails had these queue ids; None where nothing hinders."""


@dataclass(frozen=True, slots=True)
class Late:
    """A transaction whose time is over, with its new state.

    OVERDUE from `overdue`: its RES did not come. OVERDUE from `claim`: it is ours to send again, for the time
    `attempts`. FAILED: nothing is sent any more, for the `reason`; `again` where that was so before, and nobody has
    noted that the originator was told.
    """

    row: int
    token: str
    peer: str
    type: str
    transaction_id: str
    message_id: str
    recipient: str
    attempts: int
    state: State
    reason: str
    again: bool = False


_NOW = bindparam("now", type_=transactions.c.due_at.type)
_JOINED = (
    select(transactions, messages.c.host, messages.c.queue_id, messages.c.expires_at, messages.c.recorded_at)
    .join(messages, messages.c.token == transactions.c.token)
    # Written like the condition of ix_transactions_due, or the index would not be used.
    .where(transactions.c.due_at.is_not(None), transactions.c.due_at <= _NOW)
    .order_by(transactions.c.due_at)
    .limit(bindparam("most"))
    # For PostgreSQL, where several hosts ask at once; SQLite has the one write lock.
    .with_for_update(of=transactions, skip_locked=True)
)
_DUE = _JOINED.where(transactions.c.state != State.OVERDUE.value)
# A copy lies on the host that had the message.
_OF_HOST = (
    transactions.c.state == State.OVERDUE.value,
    or_(messages.c.host == bindparam("host"), transactions.c.due_at <= bindparam("abandoned", type_=_NOW.type)),
)
_TO_SEND = _JOINED.where(*_OF_HOST)
_ANY_TO_SEND = select(
    exists()
    .where(transactions.c.due_at.is_not(None), transactions.c.due_at <= _NOW, *_OF_HOST)
    .where(messages.c.token == transactions.c.token)
    .select_from(transactions, messages)
)
_ANY_DUE = select(
    exists().where(transactions.c.due_at.is_not(None), transactions.c.due_at <= _NOW).select_from(transactions)
)
_BY_ROW = update(transactions).where(transactions.c.id == bindparam("a_row"))
_AT = bindparam("an_at", type_=transactions.c.updated_at.type)
_DUE_AT = bindparam("a_due", type_=transactions.c.due_at.type)
_POSTPONE = _BY_ROW.values(due_at=_DUE_AT)
_SET = _BY_ROW.values(state=bindparam("a_state"), due_at=_DUE_AT, updated_at=_AT)
_CLAIM = _BY_ROW.values(attempts=bindparam("count"), claimed_at=_AT, due_at=_DUE_AT)
# Answered or bounced while the copy was under way: that stands, and whoever noted it has set what is due.
_SENT = _BY_ROW.where(transactions.c.state == State.OVERDUE.value).values(
    state=State.WAITING.value, due_at=_DUE_AT, updated_at=_AT
)
_UNCLAIM = _BY_ROW.values(claimed_at=None, sent_as=bindparam("a_queue_id"))
_POSTPONE_COPY = _POSTPONE.where(transactions.c.state == State.OVERDUE.value)
_GIVE_UP = _BY_ROW.where(transactions.c.state == State.OVERDUE.value).values(
    state=bindparam("a_state"), due_at=None, claimed_at=None, updated_at=_AT
)
_SETTLE = _BY_ROW.where(transactions.c.state == State.FAILED.value).values(due_at=None)
_STATUS = select(transactions.c.status).where(transactions.c.id == bindparam("a_row"))
_AWAITED = (
    select(transactions.c.token)
    .where(
        transactions.c.token.in_(bindparam("tokens", expanding=True)),
        transactions.c.due_at.is_not(None),
        or_(
            transactions.c.state.in_([State.RECORDED.value, State.WAITING.value, State.OVERDUE.value]),
            (transactions.c.state == State.ANSWERED.value) & transactions.c.status.in_(list(TRANSIENT)),
        ),
    )
    .distinct()
)
_INSERT_EVENTS = insert(events)
_LAST_EVENTS = select(events.c.transaction_row, events.c.what).where(
    events.c.id.in_(
        select(func.max(events.c.id))
        .where(events.c.transaction_row.in_(bindparam("rows", expanding=True)))
        .group_by(events.c.transaction_row)
    )
)


def any_due(connection: Connection, now: datetime) -> bool:
    """Whether anything may be due; asked often, so it only reads."""
    return bool(connection.execute(_ANY_DUE, {"now": now}).scalar())


def any_to_send(connection: Connection, now: datetime, host: str) -> bool:
    """Whether `claim` would find anything; only reads."""
    return bool(connection.execute(_ANY_TO_SEND, {"now": now, "host": host, "abandoned": now - ABANDONED}).scalar())


def awaited(connection: Connection, tokens: Sequence[str]) -> set[str]:
    """Those of the tokens whose message may yet have to be sent again."""
    return {row.token for some in batches(tokens) for row in connection.execute(_AWAITED, {"tokens": some})}


def overdue(
    connection: Connection, now: datetime, limit: int, retries: Mapping[str, Retry]
) -> tuple[list[Late], int, list[int]]:
    """Take up to `limit` transactions whose time is over through that; gives what became of them, and how many.

    The last value are the row ids of those that are not sent again.

    WAITING is OVERDUE, and due for `claim` where its peer's entry in `retries` asks for that. Where nothing is to be
    sent any more, `claim` fails it, on the host that knows whether it is still in the queue. An error that may pass is
    treated the same, but FAILED at once: who gave it has the message. What else is found has nothing due any more.
    """
    rows = connection.execute(_DUE, {"now": now, "most": limit}).all()
    found: list[Late] = []
    ended: list[int] = []
    changes: list[dict[str, Any]] = []
    postponed: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for row in rows:
        if row.state == State.RECORDED.value:
            # Postfix may have refused it, or its token waits; it is looked at again after as long as it stood.
            postponed.append({"a_row": row.id, "a_due": now + max(now - row.recorded_at, UNDECIDED)})
            continue
        if row.state == State.FAILED.value:
            postponed.append({"a_row": row.id, "a_due": now + LEASE})
            found.append(_late(row, State.FAILED, "told again", again=True))
            continue
        error = row.status if row.state == State.ANSWERED.value and row.status in TRANSIENT else None
        retry = retries.get(row.peer, Retry(0, 0))
        if row.state != State.WAITING.value and not (error and retry.limit):
            postponed.append({"a_row": row.id, "a_due": None})
            ended.append(row.id)
            continue
        reason = error or "no RES in time"
        end = _end(row, retry, now) if retry.limit else None
        if end and not error:
            changes.append({"a_row": row.id, "a_state": State.OVERDUE.value, "a_due": now, "an_at": now})
            continue
        state = State.FAILED if end else State.OVERDUE
        ended += [row.id] if end else []
        due = now + LEASE if end else now if retry.limit else None
        changes.append({"a_row": row.id, "a_state": state.value, "a_due": due, "an_at": now})
        detail = f"{reason}; {end}" if end else reason
        notes.append(_note(row, now, state.value if end or not error else "to be sent again", detail))
        if end or not error:
            found.append(_late(row, state, detail))
    _write(connection, (_SET, changes), (_POSTPONE, postponed), (_INSERT_EVENTS, notes))
    return found, len(rows), ended


def claim(
    connection: Connection,
    now: datetime,
    limit: int,
    retries: Mapping[str, Retry],
    host: str,
    hindrance: Hindrance | None = None,
) -> tuple[list[Late], int, list[int]]:
    """Take up to `limit` copies to send again from this host; gives them, with what is FAILED, and how many it saw.

    The last value are the row ids of those that are not sent again.

    The attempt counts from now on, and the claim lasts for LEASE; one that ran out unnoted is the same attempt. What
    `hindrance` holds back is neither sent nor FAILED, and no attempt: it is looked at again after its pause, and when
    the way is free its RES has that long to come.
    """
    most = max(limit, LOOKED_AT) if hindrance is not None else limit
    values = {"now": now, "most": most, "host": host, "abandoned": now - ABANDONED}
    rows = connection.execute(_TO_SEND, values).all()
    held_before = _held_back(connection, rows) if hindrance is not None else set()
    found: list[Late] = []
    changes: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    postponed: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    for row in rows:
        if len(found) >= limit:
            break
        retry = retries.get(row.peer, Retry(0, 0))
        attempts = row.attempts or 0
        if not retry.limit:
            notes.append(_end_without(row, now, "the peer's entry asks for no retry", changes))
            continue
        if hindrance is not None and row.host == host:
            reason = hindrance.hinders(row.peer, row.recipient, (row.queue_id, row.sent_as))
            if reason is not None or row.id in held_before:
                postponed.append({"a_row": row.id, "a_due": now + retry.pause(attempts)})
                if reason is None:
                    notes.append(_note(row, now, _FREE, "its RES may come now"))
                elif row.id not in held_before:
                    notes.append(_note(row, now, _HELD_BACK, reason))
                continue
        if end := _end(row, retry, now):
            detail = f"{row.status or 'no RES in time'}; {end}"
            changes.append({"a_row": row.id, "a_state": State.FAILED.value, "a_due": now + LEASE, "an_at": now})
            notes.append(_note(row, now, State.FAILED.value, detail))
            found.append(_late(row, State.FAILED, detail))
        elif row.host != host:
            notes.append(_end_without(row, now, f"its copy is on {row.host}", changes))
        elif row.claimed_at is not None:
            postponed.append({"a_row": row.id, "a_due": now + LEASE})
            found.append(_late(row, State.OVERDUE, f"attempt {attempts} of {retry.limit}", attempts))
        else:
            claims.append({"a_row": row.id, "count": attempts + 1, "an_at": now, "a_due": now + LEASE})
            found.append(_late(row, State.OVERDUE, f"attempt {attempts + 1} of {retry.limit}", attempts + 1))
    _write(connection, (_SET, changes), (_CLAIM, claims), (_POSTPONE, postponed), (_INSERT_EVENTS, notes))
    return found, len(rows), [change["a_row"] for change in changes]


def _held_back(connection: Connection, rows: Sequence[Row[Any]]) -> set[int]:
    """Those of the rows to which nothing has happened since they were held back."""
    last = connection.execute(_LAST_EVENTS, {"rows": [row.id for row in rows]}) if rows else ()
    return {row.transaction_row for row in last if row.what == _HELD_BACK}


def _end_without(row: Row[Any], now: datetime, why: str, changes: list[dict[str, Any]]) -> dict[str, Any]:
    """Have a row be what it was, with nothing due; gives the event."""
    state = State.ANSWERED if row.status else State.OVERDUE
    changes.append({"a_row": row.id, "a_state": state.value, "a_due": None, "an_at": now})
    return _note(row, now, "not sent again", why)


def sent_again(connection: Connection, late: Late, at: datetime, queue_id: str | None, due_at: datetime) -> bool:
    """Note that a claimed copy was submitted: WAITING until `due_at`; False where it was answered meanwhile."""
    waiting = connection.execute(_SENT, {"a_row": late.row, "a_due": due_at, "an_at": at}).rowcount > 0
    connection.execute(_UNCLAIM, {"a_row": late.row, "a_queue_id": queue_id})
    note = _note(late, at, "sent again", late.reason, queue_id)
    connection.execute(_INSERT_EVENTS, [note])
    return waiting


def not_sent(connection: Connection, late: Late, at: datetime, reason: str, again_at: datetime | None) -> None:
    """Note that a claimed copy was not submitted: the same attempt is due at `again_at`, or never (None).

    What is never sent again stays OVERDUE, or has the error again that was its answer.
    """
    if again_at is not None:
        connection.execute(_POSTPONE_COPY, {"a_row": late.row, "a_due": again_at})
        return
    status = connection.execute(_STATUS, {"a_row": late.row}).scalar()
    state = State.ANSWERED if status else State.OVERDUE
    if connection.execute(_GIVE_UP, {"a_row": late.row, "a_state": state.value, "an_at": at}).rowcount:
        connection.execute(_INSERT_EVENTS, [_note(late, at, "not sent again", reason)])


def settle(connection: Connection, rows: Collection[int]) -> None:
    """Note that the originators of FAILED transactions were told."""
    _write(connection, (_SETTLE, [{"a_row": row} for row in rows]))


def _end(row: Row[Any], retry: Retry, now: datetime) -> str | None:
    """Why nothing is sent again; None where something is."""
    if row.expires_at is not None and row.expires_at <= now:
        return "the message has expired"
    # An attempt that was claimed and not noted is not over.
    if (row.attempts or 0) >= retry.limit and row.claimed_at is None:
        return f"sent again {row.attempts} of {retry.limit} times"
    return None


def _late(row: Row[Any], state: State, reason: str, attempts: int | None = None, *, again: bool = False) -> Late:
    return Late(
        row=row.id,
        token=row.token,
        peer=row.peer,
        type=row.type,
        transaction_id=row.transaction_id,
        message_id=row.message_id,
        recipient=row.recipient,
        attempts=(row.attempts or 0) if attempts is None else attempts,
        state=state,
        reason=reason,
        again=again,
    )


def _note(row: Row[Any] | Late, at: datetime, what: str, detail: str, queue_id: str | None = None) -> dict[str, Any]:
    return {
        "transaction_row": row.row if isinstance(row, Late) else row.id,
        "token": row.token,
        "at": at,
        "what": what,
        "queue_id": queue_id,
        "detail": detail,
    }


def _write(connection: Connection, *statements: tuple[Any, list[dict[str, Any]]]) -> None:
    for statement, values in statements:
        if values:
            connection.execute(statement, values)

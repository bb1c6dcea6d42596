"""How a transaction goes from state to state: what Postfix, a RES or a bounce changes.

Each function runs on the writer's connection inside its transaction. All of them may come twice (Postfix
delivers again after a crash, a peer repeats its RES) and then change nothing more than an event. Nothing
that comes in vanishes: what fits no transaction becomes an event of its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, case, func, insert, select, update

from ..protocol.retry import TRANSIENT
from ..protocol.transaction import Direction, State
from .schema import events, messages, transactions

__all__ = ["accept", "add_event", "answer", "bounce", "receive_answer"]

_INSERT_EVENTS = insert(events)
_TOKEN: BindParameter[str] = bindparam("a_token")
_AT = bindparam("an_at", type_=messages.c.recorded_at.type)

_EXISTS = select(messages.c.token).where(messages.c.token == _TOKEN)

_ACCEPT_MESSAGE = (
    update(messages)
    .where(messages.c.token == _TOKEN, messages.c.accepted_at.is_(None))
    # The milter may not have known the queue id; one that it knew stands.
    .values(
        accepted_at=_AT,
        queue_id=case(
            (messages.c.queue_id == "", func.coalesce(bindparam("a_queue_id"), "")), else_=messages.c.queue_id
        ),
    )
)
_ACCEPT_TRANSACTIONS = (
    update(transactions)
    .where(transactions.c.token == _TOKEN, transactions.c.state == State.RECORDED.value)
    .values(
        state=case(
            (
                (transactions.c.direction == Direction.OUT.value) & transactions.c.ack_requested,
                State.WAITING.value,
            ),
            else_=State.ACCEPTED.value,
        ),
        updated_at=_AT,
    )
)
# On the way of every message: two statements do what `accept` and an answer after it would do in four.
_ANSWER_MESSAGE = (
    update(messages)
    .where(messages.c.token == _TOKEN, messages.c.answered_at.is_(None))
    .values(
        accepted_at=func.coalesce(messages.c.accepted_at, _AT),
        answered_at=_AT,
        answer_queue_id=bindparam("a_queue_id"),
    )
)
_ANSWER_STATUS = select(messages.c.answer_status).where(messages.c.token == _TOKEN).scalar_subquery()
_COPY_OF = select(messages.c.copy_of).where(messages.c.token == _TOKEN, messages.c.type.like("%.RES"))
_SAID = select(messages.c.answer_status, messages.c.answer_text).where(messages.c.token == _TOKEN)
_RELEASE = (
    update(messages)
    .where(messages.c.token == _TOKEN, messages.c.answered_at.is_(None))
    .values(answer_status=bindparam("a_status"), answer_text=bindparam("a_text"), answered_at=_AT)
)
_RELEASE_TRANSACTIONS = (
    update(transactions)
    .where(
        transactions.c.token == _TOKEN,
        transactions.c.direction == Direction.IN.value,
        transactions.c.state.in_((State.RECORDED.value, State.ACCEPTED.value)),
    )
    .values(state=State.ANSWERED.value, status=bindparam("a_status"), updated_at=_AT)
)
_INWARD = transactions.c.direction == Direction.IN.value
_ANSWER_TRANSACTIONS = (
    update(transactions)
    .where(
        transactions.c.token == _TOKEN,
        (transactions.c.state == State.RECORDED.value) | (_INWARD & (transactions.c.state == State.ACCEPTED.value)),
    )
    .values(
        state=case(
            (_INWARD, State.ANSWERED.value),
            (transactions.c.ack_requested, State.WAITING.value),
            else_=State.ACCEPTED.value,
        ),
        status=case((_INWARD, func.coalesce(_ANSWER_STATUS, transactions.c.status)), else_=transactions.c.status),
        updated_at=_AT,
    )
)
_WENT_NOWHERE = (State.REFUSED.value, State.DUPLICATE.value, State.SUPPRESSED.value)
# FOR UPDATE is for PostgreSQL, where two hosts may get the same RES; SQLite has the one write lock.
_CANDIDATES = (
    select(
        transactions.c.id,
        transactions.c.token,
        transactions.c.recipient,
        transactions.c.message_id,
        transactions.c.state,
        transactions.c.status,
        transactions.c.due_at,
    )
    .where(
        transactions.c.transaction_id == bindparam("an_id"),
        transactions.c.peer == bindparam("a_peer"),
        transactions.c.direction == Direction.OUT.value,
        transactions.c.type == bindparam("a_type"),
        # What was refused or suppressed, or had gone before, never went out: no peer can answer it.
        transactions.c.state.not_in(_WENT_NOWHERE),
    )
    .order_by(transactions.c.id)
    .with_for_update()
)
_SET_STATE = (
    update(transactions)
    .where(transactions.c.id == bindparam("a_row"))
    # Whatever it has come to, nothing is awaited any more.
    .values(state=bindparam("a_state"), updated_at=_AT, due_at=None)
)
_SET_STATE_AND_STATUS = _SET_STATE.values(status=bindparam("a_status"))
# An error that may pass: what is due stays so, and the timer sends the REQ again where the peer's entry says so.
_SET_PASSING = (
    update(transactions)
    .where(transactions.c.id == bindparam("a_row"))
    .values(state=bindparam("a_state"), status=bindparam("a_status"), updated_at=_AT)
)
_ANSWER_RECEIVED = "answer received"
_LATE_ANSWER = "late answer"
_GIVEN_UP = (State.OVERDUE.value, State.FAILED.value)
_WAS_ANSWERED = select(events.c.id).where(
    events.c.transaction_row == bindparam("a_row"), events.c.what.in_((_ANSWER_RECEIVED, _LATE_ANSWER))
)
_OF_TOKEN = (
    select(transactions.c.id, transactions.c.recipient, transactions.c.state)
    .where(transactions.c.token == _TOKEN)
    .order_by(transactions.c.id)
    .with_for_update()
)


def accept(connection: Connection, token: str, at: datetime, queue_id: str | None) -> bool:
    """Note that Postfix has the message, the first time only; gives whether the token is known."""
    values = {"a_token": token, "an_at": at}
    if connection.execute(_ACCEPT_MESSAGE, {**values, "a_queue_id": queue_id}).rowcount:
        connection.execute(_ACCEPT_TRANSACTIONS, values)
        return True
    return connection.execute(_EXISTS, {"a_token": token}).first() is not None


def answer(connection: Connection, token: str, at: datetime, queue_id: str | None) -> bool:
    """Note that the RES of the message was submitted, the first time only; gives whether the token is known.

    Postfix cannot have submitted it without having the message: so this accepts it too.
    """
    values = {"a_token": token, "an_at": at}
    if not connection.execute(_ANSWER_MESSAGE, {**values, "a_queue_id": queue_id}).rowcount:
        return connection.execute(_EXISTS, {"a_token": token}).first() is not None
    if not connection.execute(_ANSWER_TRANSACTIONS, values).rowcount:
        # A message without transactions of its own is a RES that another message waited for.
        waiting = connection.execute(_COPY_OF, {"a_token": token}).scalar()
        if waiting is not None:
            release(connection, waiting, token, at)
    return True


def release(connection: Connection, token: str, by: str, at: datetime) -> None:
    """Note that the RES that the message waited for is out, the first time only; it is that of the message `by`."""
    said = connection.execute(_SAID, {"a_token": by}).first()
    if said is None:
        return
    held = {"a_token": token, "a_status": said.answer_status, "an_at": at}
    if connection.execute(_RELEASE, {**held, "a_text": said.answer_text}).rowcount:
        connection.execute(_RELEASE_TRANSACTIONS, held)


def receive_answer(
    connection: Connection,
    *,
    peer: str,
    type_: str,
    transaction_id: str,
    message_id: str | None,
    status: str,
    at: datetime,
    recipients: tuple[str, ...],
    queue_id: str | None,
    detail: str,
) -> int:
    """Correlate a RES with what went out to that peer; gives the number of transactions that it fits.

    A row that already has its answer keeps it, unless that was an error after which the REQ is to go again. Only the
    peer that got the request can answer it. `recipients` are those of whom the answer speaks; empty where it speaks of
    all.
    """
    request = type_.removesuffix(".RES") + ".REQ" if type_.endswith(".RES") else None
    rows = []
    if request is not None:
        found = {"an_id": transaction_id, "a_peer": peer, "a_type": request}
        rows = [
            row
            for row in connection.execute(_CANDIDATES, found)
            if message_id in (None, row.message_id) and (not recipients or row.recipient in recipients)
        ]
    if not rows:
        add_event(connection, token=None, at=at, what="unknown answer", queue_id=queue_id, detail=detail)
        return 0
    notes: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    for row in rows:
        passing = row.status in TRANSIENT and row.due_at is not None
        repeated = (row.state == State.ANSWERED.value and not passing) or (
            # A bounce after the answer hides it from the state.
            row.state == State.BOUNCED.value
            and connection.execute(_WAS_ANSWERED, {"a_row": row.id}).first() is not None
        )
        if repeated:
            what = "repeated answer" if row.status == status else "contradictory answer"
        else:
            changes.append({"a_row": row.id, "a_state": State.ANSWERED.value, "a_status": status, "an_at": at})
            what = _LATE_ANSWER if row.state in _GIVEN_UP else _ANSWER_RECEIVED
        note = _event(row=row.id, token=row.token, at=at, what=what, queue_id=queue_id, detail=detail)
        notes.append(note)
    if changes:
        connection.execute(_SET_PASSING if status in TRANSIENT else _SET_STATE_AND_STATUS, changes)
    connection.execute(_INSERT_EVENTS, notes)
    return len(rows)


def bounce(
    connection: Connection,
    token: str,
    *,
    recipient: str | None,
    status: str,
    at: datetime,
    queue_id: str | None,
    detail: str,
) -> int:
    """Note that delivery failed, to one recipient or to all; gives the number of transactions concerned.

    A status that the peer gave, or that an earlier bounce left, is kept: the first word counts.
    """
    rows = [
        row
        for row in connection.execute(_OF_TOKEN, {"a_token": token})
        # What never went anywhere cannot bounce.
        if recipient in (None, row.recipient) and row.state not in _WENT_NOWHERE
    ]
    if not rows:
        about = detail if recipient is None else f"{recipient}: {detail}"
        add_event(connection, token=token, at=at, what="unknown bounce", queue_id=queue_id, detail=about)
        return 0
    kept = (State.ANSWERED.value, State.BOUNCED.value)
    values = [(row, {"a_row": row.id, "a_state": State.BOUNCED.value, "an_at": at}) for row in rows]
    keeping = [value for row, value in values if row.state in kept]
    setting = [{**value, "a_status": status} for row, value in values if row.state not in kept]
    if keeping:
        connection.execute(_SET_STATE, keeping)
    if setting:
        connection.execute(_SET_STATE_AND_STATUS, setting)
    about = f"{status}: {detail}"
    connection.execute(
        _INSERT_EVENTS,
        [_event(row=row.id, token=token, at=at, what="bounced", queue_id=queue_id, detail=about) for row in rows],
    )
    return len(rows)


def add_event(
    connection: Connection,
    *,
    token: str | None,
    at: datetime,
    what: str,
    queue_id: str | None,
    detail: str | None,
) -> None:
    """Note something about a message as a whole, or about none."""
    connection.execute(_INSERT_EVENTS, [_event(token=token, at=at, what=what, queue_id=queue_id, detail=detail)])


def _event(
    *,
    token: str | None,
    at: datetime,
    what: str,
    queue_id: str | None,
    detail: str | None,
    row: int | None = None,
) -> dict[str, Any]:
    return {
        "transaction_row": row,
        "token": token,
        "at": at,
        "what": what,
        "queue_id": queue_id,
        "detail": detail,
    }

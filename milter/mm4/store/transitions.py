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
from .prepared import Prepared, among
from .schema import events, messages, transactions

__all__ = ["accept", "add_event", "answer", "bounce", "receive_answer"]

_INSERT_EVENT = Prepared(insert(events))
_TOKEN: BindParameter[str] = bindparam("a_token")
_AT = bindparam("an_at", type_=messages.c.recorded_at.type)

_EXISTS = Prepared(select(messages.c.token).where(messages.c.token == _TOKEN))

_ACCEPT_MESSAGE = Prepared(
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
_ACCEPT_TRANSACTIONS = Prepared(
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
_ANSWER_MESSAGE = Prepared(
    update(messages)
    .where(messages.c.token == _TOKEN, messages.c.answered_at.is_(None))
    .values(
        accepted_at=func.coalesce(messages.c.accepted_at, _AT),
        answered_at=_AT,
        answer_queue_id=bindparam("a_queue_id"),
    )
)
_ANSWER_STATUS = select(messages.c.answer_status).where(messages.c.token == _TOKEN).scalar_subquery()
_COPY_OF = Prepared(select(messages.c.copy_of).where(messages.c.token == _TOKEN, messages.c.type.like("%.RES")))
_SAID = Prepared(select(messages.c.answer_status, messages.c.answer_text).where(messages.c.token == _TOKEN))
_RELEASE = Prepared(
    update(messages)
    .where(messages.c.token == _TOKEN, messages.c.answered_at.is_(None))
    .values(answer_status=bindparam("a_status"), answer_text=bindparam("a_text"), answered_at=_AT)
)
_RELEASE_TRANSACTIONS = Prepared(
    update(transactions)
    .where(
        transactions.c.token == _TOKEN,
        transactions.c.direction == Direction.IN.value,
        among(transactions.c.state, (State.RECORDED.value, State.ACCEPTED.value)),
    )
    .values(state=State.ANSWERED.value, status=bindparam("a_status"), updated_at=_AT)
)
_INWARD = transactions.c.direction == Direction.IN.value
_ANSWER_TRANSACTIONS = Prepared(
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
_CANDIDATES = Prepared(
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
        ~among(transactions.c.state, _WENT_NOWHERE),
    )
    .order_by(transactions.c.id)
    .with_for_update()
)
_ROW = update(transactions).where(transactions.c.id == bindparam("a_row"))
# Whatever it has come to, nothing is awaited any more.
_SET_STATE = Prepared(_ROW.values(state=bindparam("a_state"), updated_at=_AT, due_at=None))
_SET_STATE_AND_STATUS = Prepared(
    _ROW.values(state=bindparam("a_state"), status=bindparam("a_status"), updated_at=_AT, due_at=None)
)
# An error that may pass: what is due stays so, and the timer sends the REQ again where the peer's entry says so.
_SET_PASSING = Prepared(_ROW.values(state=bindparam("a_state"), status=bindparam("a_status"), updated_at=_AT))
_ANSWER_RECEIVED = "answer received"
_LATE_ANSWER = "late answer"
_GIVEN_UP = (State.OVERDUE.value, State.FAILED.value)
_WAS_ANSWERED = Prepared(
    select(events.c.id).where(
        events.c.transaction_row == bindparam("a_row"), among(events.c.what, (_ANSWER_RECEIVED, _LATE_ANSWER))
    )
)
_OF_TOKEN = Prepared(
    select(transactions.c.id, transactions.c.recipient, transactions.c.state)
    .where(transactions.c.token == _TOKEN)
    .order_by(transactions.c.id)
    .with_for_update()
)


def accept(connection: Connection, token: str, at: datetime, queue_id: str | None) -> bool:
    """Note that Postfix has the message, the first time only; gives whether the token is known."""
    values = {"a_token": token, "an_at": at}
    if _ACCEPT_MESSAGE.change(connection, {**values, "a_queue_id": queue_id}):
        _ACCEPT_TRANSACTIONS.change(connection, values)
        return True
    return _EXISTS.first(connection, {"a_token": token}) is not None


def answer(connection: Connection, token: str, at: datetime, queue_id: str | None) -> bool:
    """Note that the RES of the message was submitted, the first time only; gives whether the token is known.

    Postfix cannot have submitted it without having the message: so this accepts it too.
    """
    values = {"a_token": token, "an_at": at}
    if not _ANSWER_MESSAGE.change(connection, {**values, "a_queue_id": queue_id}):
        return _EXISTS.first(connection, {"a_token": token}) is not None
    if not _ANSWER_TRANSACTIONS.change(connection, values):
        # A message without transactions of its own is a RES that another message waited for.
        waiting = _COPY_OF.first(connection, {"a_token": token})
        if waiting is not None and waiting.copy_of is not None:
            release(connection, waiting.copy_of, token, at)
    return True


def release(connection: Connection, token: str, by: str, at: datetime) -> None:
    """Note that the RES that the message waited for is out, the first time only; it is that of the message `by`."""
    said = _SAID.first(connection, {"a_token": by})
    if said is None:
        return
    held = {"a_token": token, "a_status": said.answer_status, "an_at": at}
    if _RELEASE.change(connection, {**held, "a_text": said.answer_text}):
        _RELEASE_TRANSACTIONS.change(connection, held)


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
            for row in _CANDIDATES.rows(connection, found)
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
            and _WAS_ANSWERED.first(connection, {"a_row": row.id}) is not None
        )
        if repeated:
            what = "repeated answer" if row.status == status else "contradictory answer"
        else:
            changes.append({"a_row": row.id, "a_state": State.ANSWERED.value, "a_status": status, "an_at": at})
            what = _LATE_ANSWER if row.state in _GIVEN_UP else _ANSWER_RECEIVED
        note = _event(row=row.id, token=row.token, at=at, what=what, queue_id=queue_id, detail=detail)
        notes.append(note)
    set_answered = _SET_PASSING if status in TRANSIENT else _SET_STATE_AND_STATUS
    for change in changes:
        set_answered.change(connection, change)
    for note in notes:
        _INSERT_EVENT.change(connection, note)
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
        for row in _OF_TOKEN.rows(connection, {"a_token": token})
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
    for value in keeping:
        _SET_STATE.change(connection, value)
    for value in setting:
        _SET_STATE_AND_STATUS.change(connection, value)
    about = f"{status}: {detail}"
    for row in rows:
        note = _event(row=row.id, token=token, at=at, what="bounced", queue_id=queue_id, detail=about)
        _INSERT_EVENT.change(connection, note)
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
    _INSERT_EVENT.change(connection, _event(token=token, at=at, what=what, queue_id=queue_id, detail=detail))


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

"""Whether a message came before: the same peer, type, ids and recipient, with the same content.

Asked in the transaction that records the message, so that of two copies that race on any connection, process or host
one is the first. What Postfix has not shown to have kept is undecided for a while; one that stays so was refused by
Postfix, and the next copy is the message.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, func, or_, select

from ..protocol.transaction import Answer, Direction, Message, Recording, State, Transaction
from .prepared import Prepared, among
from .schema import clean, messages, transactions

__all__ = ["PENDING", "as_recorded", "find", "locks"]

PENDING = timedelta(seconds=60)
"""How long a message may be undecided; Postfix shows within a second, as a rule, that it kept one."""
_SLACK = 1024
"""Bytes by which two copies may differ in size, beside one in a hundred: Received lines, another boundary."""

_SOURCE: BindParameter[str] = bindparam("a_source")
MOST = 200
"""Earlier transactions with the same ids and recipient that are looked at, the newest first: a peer may use ids as
often as it likes."""
_first = messages.alias()
# Postfix has all parts of a message to several sides as soon as it has the first one's.
_FIRST_ACCEPTED = select(_first.c.accepted_at).where(_first.c.token == messages.c.split_of).scalar_subquery()
_CANDIDATES = Prepared(
    select(
        transactions.c.id,
        transactions.c.recipient,
        transactions.c.state,
        transactions.c.status,
        messages.c.token,
        messages.c.recorded_at,
        func.coalesce(messages.c.accepted_at, _FIRST_ACCEPTED).label("accepted_at"),
        messages.c.digest,
        messages.c.size,
        messages.c.answer_to,
        messages.c.answer_status,
        messages.c.answered_at,
        messages.c.reply_to,
    )
    .join(messages, messages.c.token == transactions.c.token)
    .where(
        transactions.c.transaction_id == bindparam("an_id"),
        transactions.c.message_id == bindparam("a_message_id"),
        transactions.c.type == bindparam("a_type"),
        transactions.c.recipient == bindparam("a_recipient"),
        # What was refused was delivered to nobody: it is judged again, for the reason may be gone.
        ~among(transactions.c.state, (State.DUPLICATE.value, State.REFUSED.value)),
        # Rows of the first schema name no source: what came in came from its peer.
        or_(
            messages.c.source == _SOURCE,
            messages.c.source.is_(None)
            & (transactions.c.direction == Direction.IN.value)
            & (transactions.c.peer == _SOURCE),
        ),
        messages.c.recorded_at > bindparam("a_since", type_=messages.c.recorded_at.type),
    )
    .order_by(transactions.c.id.desc())
    .limit(MOST)
)
_ANSWER = Prepared(
    select(
        messages.c.answer_to,
        messages.c.answer_from,
        messages.c.answer_type,
        messages.c.answer_status,
        messages.c.answer_text,
    ).where(messages.c.token == bindparam("a_token"))
)


def locks(message: Message) -> tuple[str, ...]:
    """What to lock before `find` and until the message is kept: two hosts would each see nothing of the other's row."""
    ids = _ids(message)
    return (f"{message.source} {ids[0]}",) if ids else ()


def find(connection: Connection, message: Message, window: timedelta) -> Recording:
    """What of `message` came before, within `window` of its time; a message without ids never did."""
    ids = _ids(message)
    if ids is None:
        return Recording()
    transaction_id, message_id = ids
    asked = {
        "an_id": transaction_id, "a_message_id": message_id, "a_type": clean(message.type),
        "a_source": message.source, "a_since": message.recorded_at - window,
    }  # fmt: skip
    recipients = dict.fromkeys(clean(transaction.recipient) for transaction in message.transactions)
    found = [row for one in recipients for row in _CANDIDATES.rows(connection, {**asked, "a_recipient": one})]
    found.sort(key=lambda row: row.id)
    same = [row for row in found if _same(row, message)]
    decided = [row for row in same if row.accepted_at is not None and _delivered(row)]
    repeated = {row.recipient for row in decided}
    undecided = [row for row in same if row.accepted_at is None and row.recipient not in repeated]
    # A clock that was set back makes an age negative, and nothing newer.
    if any(abs(message.recorded_at - row.recorded_at) < PENDING for row in undecided):
        return Recording(pending=True)
    other = next((row.token for row in found if not _same(row, message)), None)
    # A RES that waits for another's word says nothing yet.
    spoken = (row for row in decided if row.answer_to is not None and (row.reply_to is None or row.answered_at))
    first = next(spoken, None)
    answer = _answer(connection, first.token) if first is not None else None
    return Recording(False, tuple(sorted(repeated)), answer, other)


def _ids(message: Message) -> tuple[str, str] | None:
    """The transaction and the message id by which a copy is found; None where there are none."""
    ids = {(t.transaction_id, t.message_id) for t in message.transactions}
    if message.source is None or len(ids) != 1 or not all(next(iter(ids))):
        return None
    transaction_id, message_id = map(clean, ids.pop())
    return transaction_id, message_id


def as_recorded(message: Message, found: Recording) -> Message:
    """The message as it is kept: repeated recipients marked, and the first one's answer where all are."""
    if not found.repeated:
        return message
    marked = tuple(
        replace(t, state=State.DUPLICATE, due_at=None) if t.recipient in found.repeated else t
        for t in message.transactions
    )
    answer, reply_to = message.answer, message.reply_to
    if answer is not None and _all_of(marked):
        # What waits for another's word goes out once, for the first one.
        answer = found.answer or (None if reply_to else answer)
        reply_to = None
    return replace(message, transactions=marked, answer=answer, reply_to=reply_to)


def _all_of(marked: tuple[Transaction, ...]) -> bool:
    return all(transaction.state is State.DUPLICATE for transaction in marked)


def _same(row: Any, message: Message) -> bool:
    """Whether two messages with the same ids say the same; what is not known of one tells nothing."""
    if None not in (row.digest, message.digest) and row.digest != message.digest:
        return False
    if row.size is None or message.size is None:
        return True
    return bool(abs(row.size - message.size) <= _SLACK + max(row.size, message.size) // 100)


def _delivered(row: Any) -> bool:
    """Whether the recipient has it: not where it bounced unacknowledged, nor where the MMSC answered with an error.

    Whoever sends such a message again wants it delivered.
    """
    if row.reply_to is not None and row.answered_at is not None and row.answer_status != "Ok":
        return False
    acknowledged = row.status == "Ok" or (row.answered_at is not None and row.answer_status == "Ok")
    return bool(row.state != State.BOUNCED.value or acknowledged)


def _answer(connection: Connection, token: str) -> Answer:
    row = _ANSWER.first(connection, {"a_token": token})
    return Answer(row.answer_to, row.answer_from, row.answer_type, row.answer_status, bytes(row.answer_text))

"""Messages to rows and back: what `record` inserts, and what `message` and `owed` read.

The rows are made in the caller's thread, so that the writer's, which all wait for, has little to do and a
value that cannot be kept fails its own message only. Errors of the database pass through; the store
translates them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, insert, select

from ..protocol.transaction import Answer, Direction, Message, Original, Recording, Split, State, Transaction
from . import copies
from .prepared import Prepared
from .schema import clean, messages, transactions
from .writer import Operation

__all__ = ["MOST_ORIGINALS", "load", "load_held", "load_originals", "load_owed", "recording", "withdraw"]

MOST_ORIGINALS = 1000
"""Transactions with one message id that are looked at, the newest first: a peer may use an id as often as it likes."""

_INSERT_MESSAGE = Prepared(insert(messages))
_INSERT_TRANSACTION = Prepared(insert(transactions))
# A RES on its way to who waited for it, not yet shown to be out.
_UNDER_WAY = select(messages.c.recorded_at, messages.c.answered_at).where(
    messages.c.copy_of == bindparam("a_token"), messages.c.answer_to.is_not(None)
)
_WAITING = select(messages.c.token).where(messages.c.token == bindparam("a_token")).with_for_update()
_HELD = (
    select(messages.c.token)
    .join(transactions, messages.c.token == transactions.c.token)
    .where(
        transactions.c.transaction_id == bindparam("an_id"),
        messages.c.reply_to.is_not(None),
        messages.c.answer_to.is_not(None),
        messages.c.answered_at.is_(None),
    )
    .group_by(messages.c.token, messages.c.recorded_at)
    .order_by(messages.c.recorded_at.desc())
    .limit(100)
)
_WITHDRAW = delete(messages).where(messages.c.token == bindparam("token"), messages.c.accepted_at.is_(None))
_BY_TOKEN = Prepared(select(messages).where(messages.c.token == bindparam("token")))
_ORIGINALS = (
    select(transactions, messages.c.source, messages.c.recorded_at)
    .join(messages, messages.c.token == transactions.c.token)
    # What was refused went nowhere: nobody can report on it.
    .where(transactions.c.type == "MM4_forward.REQ", transactions.c.state != State.REFUSED.value)
    .order_by(transactions.c.id.desc())
    .limit(MOST_ORIGINALS)
)
_OF_TOKEN = Prepared(select(transactions).where(transactions.c.token == bindparam("token")).order_by(transactions.c.id))


def recording(
    message: Message, window: timedelta | None, splits: Sequence[Message] = ()
) -> Operation[Recording]:
    """Give the operation that inserts the message and its transactions, and says what of it came before.

    Without `window` nothing is looked for. `splits` are its parts for further sides: all are kept, or none. Raises
    ValueError for a time without zone.
    """
    parts = (message, *splits)
    for part in parts:
        for time in (part.recorded_at, part.accepted_at, part.answered_at):
            if time is not None and time.tzinfo is None:
                raise ValueError(f"message {part.token}: time {time.isoformat()} has no time zone")
    made = [(_message_row(part), _transaction_rows(part)) for part in parts]

    def operation(connection: Connection) -> Recording:
        found = Recording()
        if window is not None:
            found = Recording.together(copies.find(connection, part, window) for part in parts)
        if found.pending:
            return found
        kept = made
        if found.repeated:
            marked = [copies.as_recorded(part, found) for part in parts]
            kept = [(_message_row(part), _transaction_rows(part)) for part in marked]
        if message.answer is not None and message.copy_of is not None and _under_way(connection, message):
            return Recording(pending=True)
        for row, rows in kept:
            _INSERT_MESSAGE.change(connection, row)
            for transaction in rows:
                _INSERT_TRANSACTION.change(connection, transaction)
        return found

    return operation


def withdraw(connection: Connection, token: str) -> None:
    """Remove a message that Postfix has not shown to have, with its transactions."""
    connection.execute(_WITHDRAW, {"token": token})


def _under_way(connection: Connection, message: Message) -> bool:
    """Whether another RES for the same REQ is out, or may be: the second comes again, and finds nobody waiting."""
    # Two hosts would each see nothing of the other's row; SQLite has the one write lock.
    connection.execute(_WAITING, {"a_token": message.copy_of})
    return any(
        row.answered_at is not None or abs(message.recorded_at - row.recorded_at) < copies.PENDING
        for row in connection.execute(_UNDER_WAY, {"a_token": message.copy_of})
    )


def _message_row(message: Message) -> dict[str, Any]:
    answer = message.answer
    # Enumerations go in as their plain text: drivers differ in what they make of an Enum.
    return {
        "token": message.token,
        "direction": message.direction.value,
        "peer": message.peer,
        "type": clean(message.type),
        "queue_id": message.queue_id,
        "host": message.host,
        "recorded_at": message.recorded_at,
        "accepted_at": message.accepted_at,
        "answered_at": message.answered_at,
        "answer_queue_id": message.answer_queue_id,
        "answer_to": answer.rcpt_to if answer else None,
        "answer_from": answer.mail_from if answer else None,
        "answer_type": answer.type if answer else None,
        "answer_status": answer.status if answer else None,
        "answer_text": answer.message if answer else None,
        "source": message.source,
        "digest": message.digest,
        "size": message.size,
        "expires_at": message.expires_at,
        "reply_to": message.reply_to,
        "copy_of": message.copy_of,
        "split": _written(message.split) if message.split else None,
        "split_of": message.split_of,
    }


def _written(split: Split) -> str:
    return json.dumps([split.carrier, split.mail_from, split.notify, split.recipients, split.edits])


def _split(text: str) -> Split:
    carrier, mail_from, notify, recipients, edits = json.loads(text)
    return Split(carrier, mail_from, notify, tuple(map(tuple, recipients)), tuple(map(tuple, edits)))


def _transaction_rows(message: Message) -> list[dict[str, Any]]:
    return [
        {
            "token": message.token,
            "peer": message.peer,
            "direction": message.direction.value,
            "type": clean(message.type),
            "transaction_id": clean(transaction.transaction_id),
            "message_id": clean(transaction.message_id),
            "originator": clean(transaction.originator),
            "recipient": clean(transaction.recipient),
            "state": transaction.state.value,
            "status": transaction.status,
            "ack_requested": transaction.ack_requested,
            "delivery_report": transaction.delivery_report,
            "read_reply": transaction.read_reply,
            "updated_at": message.recorded_at,
            "report": transaction.report,
            "due_at": transaction.due_at,
            "attempts": transaction.attempts,
        }
        for transaction in message.transactions
    ]


def load(connection: Connection, token: str) -> Message | None:
    """Read one message with its transactions and its answer; None where the token is unknown."""
    row = _BY_TOKEN.first(connection, {"token": token})
    if row is None:
        return None
    return _message(row, _OF_TOKEN.rows(connection, {"token": token}))


def load_held(
    connection: Connection, transaction_id: str, message_id: str | None, peer: str | None
) -> tuple[Message, ...]:
    """Read the messages whose own RES waits for the one to this transaction: outward to `peer`, or inward (None)."""
    query = _HELD.where(
        transactions.c.direction == (Direction.IN.value if peer is None else Direction.OUT.value),
        *(() if peer is None else (transactions.c.peer == peer,)),
        *(() if message_id is None else (transactions.c.message_id == message_id,)),
    )
    found = (load(connection, row.token) for row in connection.execute(query, {"an_id": transaction_id}).all())
    return tuple(message for message in found if message is not None)


def load_owed(connection: Connection, older_than: datetime | None) -> list[Message]:
    """Read the messages whose answer is not out, oldest first; `older_than` compares with recorded_at."""
    # Written like the condition of ix_messages_owed, or the index would not be used.
    condition: ColumnElement[bool] = messages.c.answer_to.is_not(None) & messages.c.answered_at.is_(None)
    # What waits for another's word is not owed yet.
    condition &= messages.c.reply_to.is_(None)
    if older_than is not None:
        condition &= messages.c.recorded_at < older_than
    rows = connection.execute(select(messages).where(condition).order_by(messages.c.recorded_at)).all()
    children: dict[str, list[Row[Any]]] = {row.token: [] for row in rows}
    joined = select(transactions).join(messages, messages.c.token == transactions.c.token)
    for child in connection.execute(joined.where(condition).order_by(transactions.c.id)):
        if child.token in children:
            children[child.token].append(child)
    return [_message(row, children[row.token]) for row in rows]


def load_originals(
    connection: Connection, message_id: str, direction: Direction | None, peer: str | None, recipient: str | None
) -> tuple[Original, ...]:
    """Read the forward.REQs with a message id, newest first; what is None does not narrow."""
    query = _ORIGINALS.where(transactions.c.message_id == message_id)
    for column, value in (("direction", direction and direction.value), ("peer", peer), ("recipient", recipient)):
        if value is not None:
            query = query.where(transactions.c[column] == value)
    return tuple(_original(row) for row in connection.execute(query))


def _original(row: Row[Any]) -> Original:
    direction = Direction(row.direction)
    return Original(
        direction=direction,
        peer=row.peer,
        # Rows of the first schema have none: a message in transit cannot be told from our own there.
        source=row.source or (row.peer if direction is Direction.IN else "local"),
        transaction_id=row.transaction_id,
        message_id=row.message_id,
        originator=row.originator,
        recipient=row.recipient,
        state=State(row.state),
        delivery_report=row.delivery_report,
        read_reply=row.read_reply,
        recorded_at=row.recorded_at,
    )


def _message(row: Row[Any], children: Iterable[Row[Any]]) -> Message:
    answer = None
    if row.answer_to is not None:
        answer = Answer(row.answer_to, row.answer_from, row.answer_type, row.answer_status, bytes(row.answer_text))
    return Message(
        token=row.token,
        direction=Direction(row.direction),
        peer=row.peer,
        type=row.type,
        queue_id=row.queue_id,
        host=row.host,
        recorded_at=row.recorded_at,
        transactions=tuple(_transaction(child) for child in children),
        source=row.source,
        answer=answer,
        accepted_at=row.accepted_at,
        answered_at=row.answered_at,
        answer_queue_id=row.answer_queue_id,
        digest=row.digest,
        size=row.size,
        expires_at=row.expires_at,
        reply_to=row.reply_to,
        copy_of=row.copy_of,
        split=_split(row.split) if row.split is not None else None,
        split_of=row.split_of,
    )


def _transaction(row: Row[Any]) -> Transaction:
    return Transaction(
        transaction_id=row.transaction_id,
        message_id=row.message_id,
        originator=row.originator,
        recipient=row.recipient,
        state=State(row.state),
        status=row.status,
        ack_requested=row.ack_requested,
        delivery_report=row.delivery_report,
        read_reply=row.read_reply,
        report=row.report,
        due_at=row.due_at,
        attempts=row.attempts or 0,
    )

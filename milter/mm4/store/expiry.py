"""Messages past their X-Mms-Expiry, by the queue ids under which Postfix may still have them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, bindparam, select

from .schema import batches, messages, transactions

__all__ = ["Expired", "expired"]


@dataclass(frozen=True, slots=True)
class Expired:
    """A message past its X-Mms-Expiry whose queue id, or that of a copy of it, is `queue_id`.

    Queue ids are used again (`enable_long_queue_ids = no`): whether the mail in the queue is this one, only its
    envelope tells.
    """

    queue_id: str
    token: str
    peer: str
    since: datetime
    """When the mail was with Postfix at the latest."""
    expires_at: datetime
    recipients: tuple[str, ...]


_NOW = bindparam("now", type_=messages.c.expires_at.type)
_EXPIRED = select(messages.c.token, messages.c.peer, messages.c.expires_at, transactions.c.recipient).where(
    messages.c.host == bindparam("host"), messages.c.expires_at <= _NOW
)
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_EXPIRED_FIRST = (
    _EXPIRED.add_columns(messages.c.queue_id.label("found"), messages.c.recorded_at.label("since"))
    .join(transactions, transactions.c.token == messages.c.token)
    .where(messages.c.queue_id.in_(_IDS))
)
_EXPIRED_COPY = (
    _EXPIRED.add_columns(transactions.c.sent_as.label("found"), transactions.c.updated_at.label("since"))
    .join(transactions, transactions.c.token == messages.c.token)
    .where(transactions.c.sent_as.in_(_IDS))
)


def expired(connection: Connection, queue_ids: Sequence[str], host: str, now: datetime) -> list[Expired]:
    """The messages of this host past their expiry that went by one of these queue ids, at first or as a copy."""
    rows = [
        row
        for some in batches(queue_ids)
        for query in (_EXPIRED_FIRST, _EXPIRED_COPY)
        for row in connection.execute(query, {"ids": some, "host": host, "now": now})
    ]
    recipients: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        recipients.setdefault((row.found, row.token), []).append(row.recipient)
    first = {(row.found, row.token): row for row in rows}
    return [
        Expired(row.found, row.token, row.peer, row.since, row.expires_at, tuple(recipients[key]))
        for key, row in first.items()
    ]

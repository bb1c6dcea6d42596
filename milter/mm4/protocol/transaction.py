"""What is remembered of an MM4 transaction: plain values that the gateway makes and the store keeps.

One `Message` is one mail that went through Postfix (one queue id, one token) to one side; its `Transaction`s are one
per recipient. The token is 128 random bits in hex: it names the message inside this Postfix, in the
responder's address, in the envelope sender of the local leg and in ENVID.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

__all__ = ["INTERNET", "Answer", "Direction", "Message", "Original", "Recording", "Split", "State", "Transaction"]

INTERNET = "mail"
"""The side beyond the gateway that e-mail addresses lie on; no peer has this name, and it speaks no MM4."""


class Direction(enum.StrEnum):
    """Which way a message went, seen from this gateway."""

    IN = "in"
    OUT = "out"


class State(enum.StrEnum):
    """What is known of one transaction."""

    RECORDED = "recorded"
    """The verdict is out, Postfix has not yet shown that it kept the message."""
    ACCEPTED = "accepted"
    """Postfix has the message (the responder has seen its token)."""
    WAITING = "waiting"
    """Sent to a peer, whose RES is awaited."""
    OVERDUE = "overdue"
    """The RES did not come in time, or was an error that may pass: it may come yet, and the REQ is sent again where the
    peer's entry says so."""
    FAILED = "failed"
    """No RES came for the last time that the REQ was sent; `status` is the last error where there was one."""
    ANSWERED = "answered"
    """The RES is out (inward) or in (outward); `status` is what it said."""
    REFUSED = "refused"
    """The message was answered with an error and not delivered."""
    BOUNCED = "bounced"
    """Postfix, or the next hop later, could not deliver it."""
    ENDED = "ended"
    """The PDU ended here (a RES) and nothing follows."""
    DUPLICATE = "duplicate"
    """A REQ that had come before: not delivered again, answered as the first one was."""
    SUPPRESSED = "suppressed"
    """A report that the originator had not asked for: kept here, and sent to nobody."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A RES that is due: the whole mail, ready to be submitted.

    `rcpt_to` and `mail_from` are envelope addresses without brackets, `rcpt_to` already names the next hop;
    `message` is the mail with CRLF line ends, ASCII only.
    """

    rcpt_to: str
    mail_from: str
    type: str
    status: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Split:
    """How the mail of one side is made of a message to several: by the responder, from the mail of the first side.

    `carrier` is the queue id of that mail. `recipients` are pairs of `Address.key` and the envelope address, next hop
    included; `notify` holds for each (RFC 3461). `edits` turn the first side's headers into this side's: rows of
    op, header, occurrence and value, in the order in which they are applied.
    """

    carrier: str
    mail_from: str
    notify: str
    recipients: tuple[tuple[str, str], ...]
    edits: tuple[tuple[str, str, int, str | None], ...]


@dataclass(frozen=True, slots=True)
class Transaction:
    """One PDU for one recipient. Ids are unquoted; `recipient` and `originator` are what `Address.key` gives.

    For a report the originator is who reports (the recipient of the message), and the recipient who is told.
    """

    transaction_id: str
    message_id: str
    originator: str
    recipient: str
    state: State = State.RECORDED
    status: str | None = None
    ack_requested: bool = False
    delivery_report: bool = False
    """Asked for by the originator or by his R/S."""
    read_reply: bool = False
    report: str | None = None
    """What a report says: its MM status or read status."""
    due_at: datetime | None = None
    """When its RES is overdue, or it is to be sent again."""
    attempts: int = 0
    """How often it was sent again."""


@dataclass(frozen=True, slots=True)
class Original:
    """A forward.REQ for one recipient that went through here: what a report about it is compared with.

    `peer` is the other end of the transaction and `source` the side it came from, each a peer's name or `local`; the
    two differ for a message in transit. The flags are what its originator asked for.
    """

    direction: Direction
    peer: str
    source: str
    transaction_id: str
    message_id: str
    originator: str
    recipient: str
    state: State
    delivery_report: bool
    read_reply: bool
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class Recording:
    """What was known of a message when it was to be kept.

    `pending`: the same message is undecided, and nothing was kept. `repeated` are the recipients, by `Address.key`,
    who have it already; `answer` is what the first one was answered, None where that was nothing. `conflict` is the
    token of a message with the same ids and other content.
    """

    pending: bool = False
    repeated: tuple[str, ...] = ()
    answer: Answer | None = None
    conflict: str | None = None

    @classmethod
    def together(cls, found: Iterable[Self]) -> Self:
        """What was known of the parts of one message to several sides."""
        parts = tuple(found)
        return cls(
            any(part.pending for part in parts),
            tuple(sorted({recipient for part in parts for recipient in part.repeated})),
            next((part.answer for part in parts if part.answer is not None), None),
            next((part.conflict for part in parts if part.conflict is not None), None),
        )


@dataclass(frozen=True, slots=True)
class Message:
    """One mail as the store keeps it. Times are aware datetimes in UTC.

    `peer` is the peer that it came from or goes to, and `source` the side from which it came: a peer's name or `local`.
    """

    token: str
    direction: Direction
    peer: str
    type: str
    queue_id: str
    host: str
    recorded_at: datetime
    transactions: tuple[Transaction, ...]
    answer: Answer | None = None
    accepted_at: datetime | None = None
    answered_at: datetime | None = None
    answer_queue_id: str | None = None
    source: str | None = None
    """None where it follows from the direction: what comes in comes from its peer, what goes out from `local`."""
    digest: str | None = None
    """Of what makes a REQ this one beside its ids: another with the same ids and another digest is no duplicate."""
    size: int | None = None
    """Bytes on the wire, as the client said at MAIL."""
    expires_at: datetime | None = None
    """X-Mms-Expiry: nothing is sent again after it."""
    reply_to: str | None = None
    """Where the RES of an MMSC that answers itself goes: the originator system, without brackets and next hop."""
    copy_of: str | None = None
    """Token of the message that this one is a duplicate of."""
    split: Split | None = None
    """Where it is one side's part of a message to several, and not the first; then `queue_id` is empty until it has a
    mail of its own."""
    split_of: str | None = None
    """Token of the first side's part."""

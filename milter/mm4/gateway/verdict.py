"""What the gateway decides about one message, as a value: nothing here does anything.

`postfix/milter.py` applies a verdict, `mm4 explain` prints one, tests compare them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

from ..protocol.content import Content
from ..protocol.errors import Reply
from ..protocol.headers import Header
from ..protocol.limits import Taken
from ..protocol.pdu import Pdu
from ..protocol.transaction import Answer, Direction, Message, Original
from .edits import Edit

__all__ = ["Action", "Arrival", "Destination", "Mail", "Part", "Question", "Recipient", "Verdict"]


class Action(enum.StrEnum):
    """What Postfix does with the message."""

    ACCEPT = "accept"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    DISCARD = "discard"
    HOLD = "hold"
    """Accepted, and kept in Postfix's hold queue until somebody releases it."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an envelope recipient goes: `side` is `local`, a peer's name, or `home` (our own system address)."""

    side: str
    number: str | None = None
    becomes: str | None = None
    """The envelope address that Postfix delivers to, next-hop suffix included; None where it stays as it is."""
    next_hop: str | None = None
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Recipient:
    """An envelope recipient as the client gave it, and what was answered at RCPT."""

    raw: str
    """The very string seen at RCPT: only this one deletes the recipient again."""
    reply: Reply
    destination: Destination | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What has to be known of earlier messages to judge a report: those with this id, to this recipient.

    `peer` None stands for any.
    """

    message_id: str
    recipient: str
    direction: Direction
    peer: str | None

    def fits(self, original: Original) -> bool:
        """Whether an earlier message is one that was asked for."""
        return (
            (original.message_id, original.recipient) == (self.message_id, self.recipient)
            and original.direction is self.direction
            and self.peer in (None, original.peer)
        )


@dataclass(frozen=True, slots=True)
class Mail:
    """One message as it arrived: everything decide() needs from the outside.

    `side` is the client's (`local` or a peer's name); `mail_from` without brackets, empty for null; `recipients`
    are the accepted ones; `pdu` is what `headers` say in the side's dialect; `token` is new for this message; `now` an
    aware datetime in UTC; `originals` answer the question of `reports.question_of`, newest first.
    """

    side: str
    client: str
    mail_from: str
    recipients: tuple[Recipient, ...]
    headers: tuple[Header, ...]
    pdu: Pdu
    queue_id: str
    host: str
    token: str
    now: datetime
    originals: tuple[Original, ...] = ()
    size: int | None = None
    """Bytes on the wire, as the client said at MAIL."""
    content: Content | None = None
    """What the body holds, where a rule had it read."""
    taken: Taken = field(default_factory=Taken)
    """What the limits of the peer say of it."""
    held: tuple[Message, ...] = ()
    """For a RES: earlier messages of its transaction id whose own RES waits for it, newest first."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A RES that came in, to be correlated with what we sent. Ids are unquoted.

    `recipients` are those of whom it speaks, by `Address.key`; empty where it says none, and speaks of all.
    """

    peer: str
    type: str
    transaction_id: str
    message_id: str | None
    status: str
    text: str | None
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """What one side gets of a message: its envelope, its edits of the headers as they came, its record."""

    side: str
    targets: tuple[Recipient, ...]
    mail_from: str
    mail_from_parameters: str
    edits: tuple[Edit, ...]
    record: Message


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision: Postfix's part (reply, envelope, header edits), and ours (what is recorded and answered)."""

    action: Action
    reply: Reply
    direction: Direction
    pdu: Pdu | None = None
    status: str | None = None
    """The request status that this message deserved, for the log and the counters."""
    reason: str | None = None
    """Why, where it was not simply accepted."""
    limit: str | None = None
    """The limit that it was over, for the log and the counters."""
    mail_from: str | None = None
    """The new envelope sender; None leaves it."""
    mail_from_parameters: str = ""
    deleted: tuple[str, ...] = ()
    """Envelope recipients to delete, as seen at RCPT."""
    added: tuple[tuple[str, str], ...] = ()
    """Envelope recipients to add, with their ESMTP parameters."""
    targets: tuple[Recipient, ...] = ()
    """Whom the message goes to: the envelope's recipients of the first side, but for a report the originator of its
    message alone."""
    edits: tuple[Edit, ...] = ()
    record: Message | None = None
    arrival: Arrival | None = None
    answers: tuple[Answer, ...] = field(default=())
    splits: tuple[Part, ...] = ()
    """What further sides get; the rest of the verdict is the first side's."""

    @property
    def everybody(self) -> tuple[Recipient, ...]:
        """Whom the message goes to, on every side."""
        return (*self.targets, *(target for part in self.splits for target in part.targets))

"""One message with what is known of it before it is judged, and the record that is kept of it.

Nothing is decided here: whose it is, which dialect its side speaks, of which earlier message a report speaks, and whom
it goes to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..protocol.address import Address, parse_address
from ..protocol.dialect import Dialect
from ..protocol.headers import Header
from ..protocol.pdu import Pdu
from ..protocol.reader import read
from ..protocol.text import one_line
from ..protocol.transaction import Direction, Message, Original, State, Transaction
from .duplicates import digest
from .identities import acting
from .internet import as_request, is_ordinary
from .localside import Local
from .reports import REPORTS, Report, addressees, original_of
from .routing import HOME, Router, Side
from .verdict import Mail, Recipient

__all__ = ["Case", "case_of", "number_of", "read_mail", "record_of"]


@dataclass(frozen=True, slots=True)
class Case:
    """A message, and what is known of it. `side` faces the identity of ours that the message itself tells."""

    mail: Mail
    router: Router
    side: Side
    dialect: Dialect
    """What its side speaks."""
    ordinary: bool
    """Whether it came as ordinary mail, which becomes an MMS."""
    report: Report | None
    """Which kind of report it is, where it is one."""
    original: Original | None
    """The message that a report speaks of, where it is known here."""
    targets: tuple[Recipient, ...]
    """Whom it goes to: the envelope's subscribers; for a report the originator alone."""

    @property
    def local(self) -> Local:
        """The identity of ours that it is for, or from."""
        return self.side.local

    @property
    def monitor(self) -> bool:
        """Whether what breaks a rule is only logged."""
        return self.side.peer is not None and self.side.peer.on_violation == "monitor"


def read_mail(headers: Sequence[Header], mail_from: str, router: Router, side: Side) -> Pdu:
    """Header lines as a PDU, in the dialect of the side that they came from.

    Ordinary mail of somebody on our side, where it may become an MMS, is read as the forward.REQ that it will be.
    """
    pdu = read(headers, router.dialect(side.name), side.region)
    ordinary = not pdu.mm4 and side.peer is None and bool(mail_from) and router.config.mail.submit
    return as_request(headers, side.region) if ordinary else pdu


def case_of(mail: Mail, router: Router, side: Side) -> Case:
    """What is known of `mail` from `side`."""
    pdu = mail.pdu
    side = acting(side, pdu, mail.mail_from, mail.recipients, router)
    numbers = tuple(r for r in mail.recipients if r.destination and r.destination.side != HOME)
    original = original_of(pdu, side, mail.originals, (parse_address(r.raw) for r in mail.recipients), router)
    targets = numbers if original is None else addressees(original, router, numbers, side.local)
    report = REPORTS.get(pdu.type or "")
    return Case(mail, router, side, router.dialect(side.name), is_ordinary(pdu), report, original, targets)


def record_of(
    case: Case,
    direction: Direction,
    peer: str,
    state: State,
    status: str | None = None,
    *,
    completed: dict[str, Any] | None = None,
    ack_requested: bool | None = None,
    targets: tuple[Recipient, ...] | None = None,
    token: str | None = None,
) -> Message:
    """What is kept of the message for one side; of all its recipients where it goes to none.

    `completed` holds typed values of fields that the gateway writes; `ack_requested` left out is as the message says.
    """
    mail, pdu, completed = case.mail, case.mail.pdu, completed or {}
    originator = pdu.get("sender") or completed.get("sender")
    recipients = dict.fromkeys(number_of(r) or r.raw.strip("<>") for r in targets or case.targets) or dict.fromkeys(
        r.raw.strip("<>") for r in mail.recipients
    )
    if case.original is not None:
        recipients = {case.original.originator: None}
    asked = pdu.ack_request if ack_requested is None else ack_requested
    due_at = _due_at(case, direction, peer, asked)
    transactions = tuple(
        Transaction(
            transaction_id=pdu.get("transaction_id") or completed.get("transaction_id") or "",
            message_id=pdu.get("message_id") or completed.get("message_id") or "",
            originator=originator.key if isinstance(originator, Address) else "",
            recipient=recipient,
            state=state,
            status=status,
            ack_requested=asked,
            due_at=due_at,
            delivery_report=bool(pdu.get("delivery_report") or pdu.get("originator_rs_report")),
            read_reply=bool(pdu.get("read_reply")),
            report=pdu.get(case.report.says) if case.report else None,
        )
        for recipient in recipients
    )
    return Message(
        token or mail.token,
        direction,
        peer,
        pdu.type or one_line(pdu.type_text or ""),
        mail.queue_id,
        mail.host,
        mail.now,
        transactions,
        source=case.side.name,
        digest=digest(pdu),
        size=mail.size,
        expires_at=_expires_at(case),
    )


def _due_at(case: Case, direction: Direction, peer: str, asked: bool) -> datetime | None:
    """When the RES that a peer was asked for is overdue."""
    link = case.router.config.peers.get(peer) if direction is Direction.OUT and asked else None
    return case.mail.now + timedelta(seconds=link.ack.timeout) if link else None


def _expires_at(case: Case) -> datetime | None:
    """X-Mms-Expiry as a moment; seconds count from now."""
    expiry = case.mail.pdu.get("expiry")
    if isinstance(expiry, timedelta):
        return case.mail.now + expiry
    return expiry.astimezone(UTC) if isinstance(expiry, datetime) else None


def number_of(recipient: Recipient) -> str:
    """The number of an envelope recipient; empty where he has none."""
    return (recipient.destination.number or "") if recipient.destination else ""

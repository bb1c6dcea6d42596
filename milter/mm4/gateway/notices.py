"""Notices: what the gateway itself tells an originator about the delivery of his message.

A delivery report (to our MMSC, or to the peer that the message came from) or an error RES to an MMSC that asked for
an ack. Both are mails of our own, recorded as such; an ack is asked only of a peer. Only a forward.REQ is told about,
so a notice about a notice cannot be.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from ..protocol.address import Address, Kind, parse_address
from ..protocol.dialect import Dialect
from ..protocol.errors import ProtocolError
from ..protocol.headers import join
from ..protocol.text import one_line
from ..protocol.transaction import Answer, Direction, Message, Original, State, Transaction
from ..protocol.writer import Verbatim, write
from .answers import restated
from .dispositions import Disposition, disposition
from .entries import domain_of
from .lines import adapted
from .localside import Local
from .names import public_name
from .outcomes import UNSPECIFIED
from .peer import Peer
from .reports import addressees
from .rewriting import inward_sender, system_sender
from .routing import LOCAL, Router
from .verdict import Destination

__all__ = ["Notice", "disposition_of", "notice_of", "notice_token"]

FORWARD = "MM4_forward.REQ"
REPORT = "MM4_delivery_report.REQ"
ANSWER = "MM4_forward.RES"

_WENT_NOWHERE = frozenset({State.REFUSED, State.DUPLICATE, State.SUPPRESSED})


@dataclass(frozen=True, slots=True)
class Notice:
    """A mail that is due, and what is recorded of it."""

    record: Message
    mail: Answer


def notice_token(message: Message, transaction: Transaction, found: Disposition) -> str:
    """The token of the notice: the same whenever its cause comes again, so that it goes out once a recipient."""
    return public_name(f"{message.token}:{transaction.recipient}:{found.failed}", "notice")


def disposition_of(
    message: Message, transaction: Transaction, action: str, status: str, router: Router, now: datetime
) -> Disposition | None:
    """What a report of one recipient of `message` means, by the configuration of the side that it was delivered to."""
    local = _identity(transaction.recipient, message, router)
    served = router.serves(parse_address(transaction.recipient).key)
    inward = message.direction is Direction.IN
    return disposition(
        action,
        status,
        relayed=local.relayed_status,
        mailbox=inward and (served.to if served else local).deliver_to is None,
        late=message.expires_at is not None and message.expires_at <= now,
    )


def notice_of(
    message: Message,
    transaction: Transaction,
    found: Disposition,
    detail: str,
    router: Router,
    now: datetime,
    host: str,
) -> Notice | None:
    """What the originator of `message` is told about one recipient; None where nothing is due, or no way leads there.

    `detail` is what the failing system said: our own MMSC gets it as a status text, a peer never does. `host` is ours,
    for the record. Raises ProtocolError for an id that the dialect cannot write.
    """
    if message.type != FORWARD or transaction.state in _WENT_NOWHERE:
        return None
    source = message.source or (message.peer if message.direction is Direction.IN else LOCAL)
    token = notice_token(message, transaction, found)
    if source in router.config.peers:
        peer = router.config.peers[source]
        if peer.delivery_report != "on_delivery" or not transaction.delivery_report:
            return None
        return _report(message, transaction, found, None, source, router, token, now, host)
    if source != LOCAL or not found.failed:
        return None
    if message.reply_to and message.answer is not None and message.answered_at is None:
        # The MMSC asked for a RES that waits for the peer's word, which will not come.
        return _released(message, transaction, found, detail, router, token, now, host)
    local = _owner(message, transaction, router)
    if local is None:
        return None
    if local.on_bounce == "report" and transaction.delivery_report:
        return _report(message, transaction, found, detail, source, router, token, now, host)
    if local.on_bounce == "res" and message.reply_to and transaction.state is not State.ANSWERED:
        return _answer(message, transaction, found, detail, local, router, token, now, host)
    return None


def _report(
    message: Message,
    transaction: Transaction,
    found: Disposition,
    detail: str | None,
    source: str,
    router: Router,
    token: str,
    now: datetime,
    host: str,
) -> Notice | None:
    ours = _owner(message, transaction, router) or router.config.home
    targets = addressees(_original(message, transaction, source), router, (), ours)
    destination: Destination | None = targets[0].destination if targets else None
    if destination is None:
        return None
    peer = router.config.peers.get(source)
    originator, reporter = parse_address(transaction.originator), parse_address(transaction.recipient)
    if peer is not None:
        local, dialect = _identity(transaction.recipient, message, router), router.dialect(source)
        theirs, behind = peer.write_domain, local.domain
        mail_from, _ = system_sender(local, peer, token)
    else:
        local, dialect = ours, router.dialect(LOCAL)
        other = router.config.peers.get(message.peer)
        theirs, behind = local.domain, other.write_domain if other else local.domain
        mail_from, _ = inward_sender(local, token)
    ack = peer.ack if peer is not None and peer.ack.request else None
    identifier = _identifier(token, local)
    values = {
        "transaction_id": identifier,
        "message_id": transaction.message_id,
        "sender": _behind(reporter, behind),
        "recipients": (_behind(originator, theirs),),
        "date": now,
        "ack_request": ack is not None,
        "mm_status": found.mm_status,
        "status_text": one_line(detail or "") or None,
    }
    record = _record(
        message,
        transaction,
        REPORT,
        token,
        now,
        host,
        direction=Direction.IN if peer is None else Direction.OUT,
        peer=message.peer if peer is None else source,
        source=LOCAL,
        transaction_id=identifier,
        ack_requested=ack is not None,
        report=found.mm_status,
        due_at=now + timedelta(seconds=ack.timeout) if ack is not None else None,
    )
    mail = _mail(REPORT, values, dialect, local, identifier, peer)
    return Notice(record, Answer(destination.becomes or "", mail_from, REPORT, found.mm_status, mail))


def _answer(
    message: Message,
    transaction: Transaction,
    found: Disposition,
    detail: str,
    local: Local,
    router: Router,
    token: str,
    now: datetime,
    host: str,
) -> Notice:
    status = found.request_status or UNSPECIFIED
    assert message.reply_to is not None
    mail_from, _ = inward_sender(local, token)
    values: dict[str, Any] = {
        "transaction_id": transaction.transaction_id,
        "message_id": transaction.message_id,
        "status_code": status,
        "status_text": one_line(detail or "") or None,
        "sender": parse_address(local.system_address),
        "recipients": Verbatim(message.reply_to),
        "request_recipients": (parse_address(transaction.recipient),),
        "date": now,
    }
    record = _record(
        message,
        transaction,
        ANSWER,
        token,
        now,
        host,
        direction=Direction.IN,
        peer=message.peer,
        source=message.peer,
        transaction_id=transaction.transaction_id,
        status=status,
    )
    mail = _mail(ANSWER, values, router.dialect(LOCAL), local, _identifier(token, local))
    return Notice(record, Answer(message.reply_to, mail_from, ANSWER, status, mail))


def _released(
    message: Message,
    transaction: Transaction,
    found: Disposition,
    detail: str,
    router: Router,
    token: str,
    now: datetime,
    host: str,
) -> Notice:
    assert message.answer is not None
    status = found.request_status or UNSPECIFIED
    answer = restated(message.answer, status, one_line(detail) or None, router.dialect(LOCAL))
    record = Message(
        token, Direction.IN, message.peer, answer.type, "", host, now, (), answer=answer, source=message.peer,
        copy_of=message.token,
    )  # fmt: skip
    return Notice(record, answer)


def _mail(
    pdu: str, values: dict[str, Any], dialect: Dialect, local: Local, identifier: str, peer: Peer | None = None
) -> bytes:
    """The whole mail; every address has its domain and every byte is ASCII, so that Postfix changes nothing."""
    system = parse_address(local.system_address)
    values |= {"sender_header": system, "originator_system": system}
    placed = {name: value for name, value in values.items() if (pdu, name) in dialect.row_of}
    lines = write(pdu, placed, dialect)
    lines += [("Message-ID", f"<{identifier}>"), ("MIME-Version", "1.0")]
    if not any(name == "Content-Type" for name, _ in lines):
        lines.append(("Content-Type", "text/plain; charset=us-ascii"))
    return join(adapted(lines, peer, dialect, pdu) if peer else lines, b"")


def _record(
    message: Message,
    transaction: Transaction,
    pdu: str,
    token: str,
    now: datetime,
    host: str,
    *,
    direction: Direction,
    peer: str,
    source: str,
    **values: Any,
) -> Message:
    told = Transaction(
        message_id=transaction.message_id,
        originator=transaction.recipient,
        recipient=transaction.originator,
        **values,
    )
    return Message(token, direction, peer, pdu, "", host, now, (told,), source=source)


def _original(message: Message, transaction: Transaction, source: str) -> Original:
    return Original(
        direction=message.direction,
        peer=message.peer,
        source=source,
        transaction_id=transaction.transaction_id,
        message_id=transaction.message_id,
        originator=transaction.originator,
        recipient=transaction.recipient,
        state=transaction.state,
        delivery_report=transaction.delivery_report,
        read_reply=transaction.read_reply,
        recorded_at=message.recorded_at,
    )


def _identity(key: str, message: Message, router: Router) -> Local:
    """The identity of ours that serves a number; where none does, the first that has the peer of the message."""
    served = router.serves(parse_address(key).key)
    return served.local if served else _facing(message, router)[0]


def _owner(message: Message, transaction: Transaction, router: Router) -> Local | None:
    """The identity of the originator: it serves his number, its MMSC asked for the RES, or the peer is its alone.

    None where that is not certain: another operator is not told about his message.
    """
    served = router.serves(parse_address(transaction.originator).key)
    if served:
        return served.local
    facing = _facing(message, router)
    asked = domain_of(message.reply_to) if message.reply_to else None
    mmscs = [local for local in facing if asked in local.delivery_domains]
    found = mmscs or facing
    return found[0] if len({local.domain for local in found}) == 1 else None


def _facing(message: Message, router: Router) -> tuple[Local, ...]:
    gone = message.peer not in router.config.peers
    return tuple(router.config.local) if gone else router.identities(message.peer)


def _identifier(token: str, local: Local) -> str:
    return f"{public_name(token, 'transaction')}@{local.domain}"


def _behind(address: Address, domain: str) -> Address:
    """The address in a domain, as it is written in a header."""
    if address.kind is Kind.INVALID:
        raise ProtocolError(f"{address.text!r} is no address to report from or to")
    return parse_address(address.write(domain))

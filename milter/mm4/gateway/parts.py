"""What one side gets of a message: its envelope, its edits and its record.

A side is our own MMSC, a peer, or the Internet; the same message looks different to each.
"""

from __future__ import annotations

from typing import Any

from ..protocol.address import Address
from ..protocol.dialect import Dialect
from ..protocol.errors import ProtocolError
from ..protocol.transaction import Direction, State
from .case import Case, number_of, record_of
from .edits import in_order
from .forms import Form
from .identities import towards
from .internet import INTERNET, MMS_FORM, mail_edits, mail_sender, request_values
from .lines import adapting_edits
from .localside import Local, LocalSide
from .reports import outward_values
from .rewriting import completions, inward_edits, inward_sender, outward_edits, outward_sender, system_sender
from .routing import LOCAL
from .verdict import Part, Recipient

__all__ = ["part_for", "sender_side"]


def part_for(case: Case, targets: tuple[Recipient, ...], token: str) -> Part:
    """What the side of these recipients gets, under its token. Raises ProtocolError where it cannot be written."""
    destination = targets[0].destination
    assert destination is not None
    if destination.side == LOCAL:
        return _submitted(case, targets, token) if case.ordinary else _inward(case, targets, token)
    if destination.side == INTERNET:
        return _internet(case, targets, token)
    return _outward(case, destination.side, targets, token)


def sender_side(case: Case) -> Local | LocalSide:
    """Which of our own systems sent this: the one that serves its originator."""
    sender = case.mail.pdu.get("sender")
    served = case.router.serves(sender.key) if isinstance(sender, Address) else None
    return served.to if served else case.local


def _serving(case: Case, targets: tuple[Recipient, ...]) -> Local:
    served = case.router.serves(number_of(targets[0]))
    return served.local if served else case.local


def _inward(case: Case, targets: tuple[Recipient, ...], token: str) -> Part:
    local = _serving(case, targets)
    sender, parameters = inward_sender(local, token)
    record = record_of(case, Direction.IN, case.side.name, State.RECORDED, targets=targets, token=token)
    # Where the MMSC answers, it gets the REQ as it is.
    answers = case.side.peer is None or case.side.peer.answers == "gateway"
    edits = inward_edits(case.mail.pdu, case.mail.headers, local, answers=answers)
    return Part(LOCAL, targets, sender, parameters, tuple(in_order(edits)), record)


def _submitted(case: Case, targets: tuple[Recipient, ...], token: str) -> Part:
    """Ordinary mail of our side to a subscriber of ours: it becomes a forward.REQ like any other."""
    local = _serving(case, targets)
    sender, parameters = inward_sender(local, token)
    completed = _completed(case, case.dialect, local, targets)
    _demand(case, case.dialect, completed)
    form = Form(local.addresses.header or MMS_FORM, local.domain)
    edits = outward_edits(case.mail.pdu, case.dialect, case.dialect, local, completed, ack=False, form=form)
    record = record_of(
        case, Direction.IN, case.side.name, State.RECORDED,
        completed=completed, ack_requested=False, targets=targets, token=token,
    )  # fmt: skip
    return Part(LOCAL, targets, sender, parameters, tuple(in_order(edits)), record)


def _outward(case: Case, name: str, targets: tuple[Recipient, ...], token: str) -> Part:
    pdu, peer = case.mail.pdu, case.router.config.peers[name]
    local = towards(name, case.side, case.router)
    assert local is not None
    dialect = case.router.dialect(name)
    # Ids that are made are the same on every side: it is one message.
    completed = _completed(case, dialect, local, targets)
    if case.original is not None:
        completed |= outward_values(pdu, case.original, local)
    _demand(case, dialect, completed)
    if peer.mms_version is not None:
        completed["mms_version"] = peer.mms_version
    template = peer.addresses.header or (MMS_FORM if case.ordinary else None)
    form = Form(template, peer.write_domain) if template else None
    edits = outward_edits(pdu, case.dialect, dialect, local, completed, ack=peer.ack.request, form=form)
    edits = adapting_edits(case.mail.headers, edits, peer, dialect, pdu.type or "")
    if case.report is not None:
        sender, parameters = system_sender(local, peer, token)
    else:
        sender, parameters = outward_sender(pdu.get("sender") or completed.get("sender"), local, peer, token)
    record = record_of(
        case, Direction.OUT, name, State.RECORDED,
        completed=completed, ack_requested=peer.ack.request, targets=targets, token=token,
    )  # fmt: skip
    return Part(name, targets, sender, parameters, tuple(in_order(edits)), record)


def _internet(case: Case, targets: tuple[Recipient, ...], token: str) -> Part:
    """A forward.REQ to e-mail addresses, which know nothing of MMS."""
    mail, local = case.mail, case.local
    completed = _completed(case, case.dialect, local, targets)
    domain = case.router.config.mail.domain or local.domain
    edits = mail_edits(mail.pdu, mail.headers, case.dialect, domain, mail.token, mail.now)
    originator = mail.pdu.get("sender") or completed.get("sender")
    sender, parameters = mail_sender(mail.pdu, originator, local, token)
    record = record_of(
        case, Direction.OUT, INTERNET, State.RECORDED,
        completed=completed, ack_requested=False, targets=targets, token=token,
    )  # fmt: skip
    return Part(INTERNET, targets, sender, parameters, tuple(in_order(edits)), record)


def _completed(case: Case, dialect: Dialect, local: Local, targets: tuple[Recipient, ...]) -> dict[str, Any]:
    mail = case.mail
    completed = completions(mail.pdu, dialect, local, mail.mail_from, targets, mail.token, mail.now)
    return completed | request_values(mail.headers, mail.pdu) if case.ordinary else completed


def _demand(case: Case, dialect: Dialect, completed: dict[str, Any]) -> None:
    """Raises ProtocolError where something is missing that only the sender knows."""
    lacking = {p.field for p in case.mail.pdu.errors if p.rule == "mandatory"} - completed.keys() - {"message_type"}
    if lacking and not case.monitor:
        header = dialect.fields[sorted(f for f in lacking if f)[0]].header
        raise ProtocolError(f"{header} is missing and cannot be completed")

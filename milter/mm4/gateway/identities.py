"""Which of our identities acts in a message, where one host is several operators.

A peer meets the identity whose number it writes to; a message of ours goes in the name of the identity that serves its
originator, and no operator's client sends as a number of another. An identity is known by its domain. With one
identity none of this asks anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..protocol.address import Address, parse_address
from ..protocol.pdu import Pdu
from ..protocol.transaction import Message
from .entries import domain_of
from .localside import Local
from .routing import LOCAL, Router, Side
from .verdict import Recipient

__all__ = ["acting", "concerns", "identity_of", "impostor", "speaking", "towards"]


def identity_of(text: str, router: Router) -> Local:
    """The identity that an address of ours belongs to, by number or domain; the first where none says so."""
    return _of(parse_address(text, router.config.home.region), router) or router.config.home


def acting(side: Side, pdu: Pdu, mail_from: str, recipients: Sequence[Recipient], router: Router) -> Side:
    """The side with the identity that acts in this message: that which a peer's is for, or that of our originator."""
    if not side.several:
        return side
    if side.peer is None:
        found = _of(_originator(pdu, mail_from, side), router)
    else:
        numbers = (r.destination.number for r in recipients if r.destination and r.destination.side == LOCAL)
        served = (router.serves(number or "") for number in numbers)
        found = next((row[1] for row in served if row), None)
        domains = (domain_of(r.raw.strip("<>")) for r in recipients)
        found = found or next(filter(None, map(router.local_of, domains)), None)
    return replace(side, local=found) if found is not None and side.faces(found) else side


def speaking(side: Side, mail_from: str, router: Router) -> tuple[Local, ...]:
    """The identities whose peers a message may go to, as far as MAIL tells: a local client's by its envelope sender."""
    if side.peer is None and side.several:
        found = _of(parse_address(mail_from, side.local.region), router)
        if found is not None and side.faces(found):
            return (found,)
    return side.identities


def impostor(side: Side, pdu: Pdu, mail_from: str, router: Router) -> str | None:
    """Why a local client may not send this: its originator is not of the client's operator. None where he is."""
    if side.peer is not None or not router.several:
        return None
    originator = _originator(pdu, mail_from, side)
    if originator is None or (originator.number is None and _of(originator, router) is None):
        return None
    owner = _of(originator, router)
    if owner is not None and side.faces(owner):
        return None
    ours = ", ".join(dict.fromkeys(local.domain for local in side.identities))
    return f"{originator.number or originator.text.strip()} is no originator of {ours}, whose client this is"


def concerns(side: Side, message: Message, router: Router) -> bool:
    """Whether a message that waits for a RES of our side waits for one of this client's operator."""
    if side.peer is not None or not router.several:
        return True
    owners = (_of(parse_address(t.recipient), router) for t in message.transactions)
    return any(owner is not None and side.faces(owner) for owner in owners)


def towards(name: str, side: Side, router: Router) -> Local | None:
    """The identity in whose name something of this side goes to a peer; None where the peer is none of its peers.

    What passes through from another peer goes in the name of any identity that the next one knows.
    """
    theirs = router.identities(name)
    if any(local.domain == side.local.domain for local in theirs):
        return side.local
    return None if side.peer is None else next((local for local in theirs if side.faces(local)), theirs[0])


def _originator(pdu: Pdu, mail_from: str, side: Side) -> Address | None:
    sender = pdu.get("sender")
    if isinstance(sender, Address):
        return sender
    return parse_address(mail_from, side.local.region) if mail_from else None


def _of(address: Address | None, router: Router) -> Local | None:
    """The identity of a number, by what we serve; of any other address, by its domain."""
    if address is None:
        return None
    if address.number is not None:
        served = router.serves(address.number)
        return served[1] if served else None
    return router.local_of(address.domain) if address.domain else None

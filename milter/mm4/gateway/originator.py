"""Whether a peer sends in names that are its own: domains outside its own, and numbers of ours.

Each is a table of what of a PDU is judged, with the source beside the row. RES are not among them: one that names its
transaction ends here, and refused it would come back as a bounce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..protocol.address import Address, parse_address
from ..protocol.pdu import Pdu
from .entries import domain_of
from .peer import Peer

__all__ = ["MAIL_FROM", "OUTSIDE", "OWN", "outside", "own_number"]

MAIL_FROM = "MAIL FROM"

_REQUESTS = ("MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ")

OUTSIDE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # TS 23.140 8.4.1: From is the originator's address, the envelope's his or his system's; X-Mms-Originator-System
        # the system address of the MMSE that sends. Sender stands in no table; traced operators repeat From in it.
        "sender": _REQUESTS,
        "sender_header": _REQUESTS,
        "originator_system": _REQUESTS,
    }
)
"""Field, and the PDUs in which it has to lie in the peer's domains where it has a domain at all; MAIL FROM always."""

OWN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # TS 23.140 8.4.1: the originator of an MM is a subscriber of the MMSE that forwards it. A report names in From
        # who received our message, and is compared with that message.
        "sender": ("MM4_forward.REQ",),
        "sender_header": ("MM4_forward.REQ",),
        MAIL_FROM: ("MM4_forward.REQ",),
    }
)
"""Field, and the PDUs in which it may be no number of ours."""


def _names(pdu: Pdu, mail_from: str, table: Mapping[str, tuple[str, ...]]) -> dict[str, Address]:
    """What a message calls its sender: the name of a header, or MAIL FROM, and the address."""
    found = {
        (pdu.found[field][0].name if pdu.found.get(field) else field): value
        for field, types in table.items()
        if (pdu.type or "") in types and isinstance(value := pdu.get(field), Address)
    }
    if (pdu.type or "") in table.get(MAIL_FROM, ()) and mail_from:
        found[MAIL_FROM] = parse_address(mail_from)
    return found


def outside(peer: Peer, pdu: Pdu | None, mail_from: str) -> tuple[str, ...]:
    """What of a peer's message lies outside its domains, by the headers' names; an address without domain does not."""
    found = [MAIL_FROM] if mail_from and domain_of(mail_from) not in peer.domains else []
    names = _names(pdu, mail_from, OUTSIDE) if pdu else {}
    return (*found, *(name for name, a in names.items() if a.domain and a.domain.lower() not in peer.domains))


def own_number(peer: Peer, pdu: Pdu, mail_from: str, serves: Callable[[str], object]) -> str | None:
    """What of a peer's message names a number of ours as its sender, and the number; None where nothing does.

    Not so where the peer may send from it (`own_numbers`), nor where the message comes home: its Previously-sent-by
    names that number.
    """
    handled = {a.number for _, a in pdu.get("previously_sent_by") or () if isinstance(a, Address)}
    for name, address in _names(pdu, mail_from, OWN).items():
        number = address.number
        if number is None or number in handled or not serves(number):
            continue
        if not number.startswith(tuple(peer.own_numbers)):
            return f"{name}: {number} is a number of ours"
    return None

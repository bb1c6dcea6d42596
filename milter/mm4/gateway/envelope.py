"""What is answered at MAIL and RCPT, before a single header has been seen.

Envelope recipients decide who must be served, header recipients never do. A refusal here costs the peer one
recipient and not the message.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol.address import Address, Kind, parse_address
from ..protocol.errors import Reply
from .forms import ANONYMOUS
from .identities import speaking
from .matching import Lookups
from .names import TOKEN, is_private
from .originator import outside
from .outcomes import (
    ALONE,
    LIMITS,
    NO_OPERATOR,
    NOT_SERVED,
    RECIPIENT_OK,
    SENDER_OK,
    STRANGER,
    TOO_LARGE,
    TOO_MANY,
    TOO_MANY_SIDES,
    WRONG_SENDER,
)
from .policy import crowded
from .routing import HOME, LOCAL, Router, Side
from .sides import side_key
from .verdict import Destination, Recipient

__all__ = ["admit", "bare", "receive", "size_of"]


def bare(path: str) -> str:
    """An envelope path without its angle brackets; null is the empty string, however it was written."""
    path = path.strip()
    return path[1:-1] if path.startswith("<") and path.endswith(">") else path


def size_of(parameters: Iterable[str]) -> int | None:
    """The SIZE parameter of MAIL in bytes on the wire, in any letter case; None where there is none."""
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.upper() == "SIZE" and value.isascii() and value.isdigit():
            # Python refuses to read thousands of digits; twenty are more than any size.
            return int(value[:20])
    return None


def admit(side: Side | None, mail_from: str, size: int | None) -> Reply:
    """The reply to MAIL."""
    if side is None:
        return STRANGER
    peer = side.peer
    if peer is None:
        return SENDER_OK
    if peer.max_size is not None and size is not None and size > peer.max_size:
        return TOO_LARGE
    if peer.identity == "strict" and outside(peer, None, mail_from):
        return WRONG_SENDER
    return SENDER_OK


def receive(
    router: Router, side: Side, mail_from: str, size: int | None, path: str, earlier: Iterable[Recipient],
    lookups: Lookups,
) -> Recipient:  # fmt: skip
    """The reply to RCPT and where the recipient goes. `earlier` are the recipients of this message so far.

    Raises LookupUnavailable where a route's question got no usable answer.
    """
    destination = _destination(router, side, mail_from, bare(path), lookups)
    if destination is None:
        return Recipient(path, NOT_SERVED)
    accepted = [r.destination for r in earlier if r.reply.positive and r.destination]
    if destination.side == HOME and destination.number and accepted:
        return Recipient(path, NOT_SERVED)
    if any(d.side == HOME and d.number for d in accepted):
        return Recipient(path, ALONE)
    if destination.side != HOME:
        sides = {side_key(d, router) for d in (*accepted, destination) if d.side != HOME}
        if len(sides) > LIMITS["sides"]:
            return Recipient(path, TOO_MANY_SIDES)
        if destination.becomes is None:
            return Recipient(path, NO_OPERATOR)
        link = router.config.peers.get(destination.side)
        if link and link.max_size is not None and size is not None and size > link.max_size:
            return Recipient(path, TOO_LARGE)
    if crowded(side, destination.side, router.config, [d.side for d in accepted]):
        return Recipient(path, TOO_MANY)
    return Recipient(path, RECIPIENT_OK, destination)


def _destination(
    router: Router, side: Side, mail_from: str, rcpt: str, lookups: Lookups
) -> Destination | None:
    if is_private(rcpt):
        return None
    localpart, domain = rcpt.rpartition("@")[::2] if "@" in rcpt else (rcpt, "")
    own = router.local_of(domain) if domain else None
    address = parse_address(rcpt, side.region)
    if own is not None and (address.kind is Kind.SYSTEM or (not mail_from and TOKEN.match(localpart.lower()))):
        return Destination(HOME, rule="local.domain")
    # The local side may write any domain behind a number: ours, a peer's, or the one its MMSC delivers in.
    known = own is not None or (side.peer is None and domain_known(router, domain))
    answers = domain.lower() == router.config.mail.domain and router.serves(address.number or "") is not None
    if side.peer is None and (answers or rcpt.lower() == ANONYMOUS):
        # An e-mail that answers a subscriber of ours; a report on a message whose sender our side did not get.
        known = True
    # Nobody is asked about a number to which this client may not send anyway.
    wide = known if side.peer is None else side.peer.transit
    found = router.route(address, speaking(side, mail_from, router), lookups) if wide else router.served(address)
    if found is None or found.side == side.name != LOCAL or not _open_to(side, found, router):
        # Nobody's number, or back to where it came from.
        if side.peer is None and known and address.kind is Kind.SYSTEM:
            # A peer's system, to which an MMSC that answers itself sends its RES.
            return Destination(HOME, address.key, rule="an answer")
        if found is None and not known and (side.peer is None or side.peer.transit):
            beyond = router.internet(address, "mail.next_hop")
            if beyond is not None:
                return beyond
        automatic = _automatic(mail_from, known, address)
        return Destination(HOME, address.key, rule="a bounce or a report") if automatic else None
    return found if known or side.peer is not None else None


def _open_to(side: Side, found: Destination, router: Router) -> bool:
    """Whether this side's mail may go there: a peer's to numbers of its operators, and to others' only in transit."""
    if side.peer is None:
        return True
    served = router.serves(found.number or "") if found.side == LOCAL else None
    return side.peer.transit if found.side != LOCAL else served is None or side.faces(served[1])


def _automatic(mail_from: str, known: bool, address: Address) -> bool:
    """Whether a recipient whom we do not serve may be that of a bounce or of a report, which come from systems.

    A bounce of what we sent comes to a sender whose number need not be in our ranges, from nobody. A report comes from
    a system address, or from nobody, and goes to the originator of a message, to whom no route need lead: the end of
    the message tells. Any other message to such a recipient is refused there, so it has no other recipient: those
    before him are served without him, those behind him come again.
    """
    if not mail_from:
        return known
    named = address.kind in (Kind.E164, Kind.SHORT_CODE, Kind.EMAIL)
    return known and named and parse_address(mail_from).kind is Kind.SYSTEM


def domain_known(router: Router, domain: str) -> bool:
    """Whether a local client may write this domain behind a number."""
    return not domain or domain.lower() in router.mm4_domains or router.names_domain(domain)

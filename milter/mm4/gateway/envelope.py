"""What is answered at MAIL and RCPT, before a single header has been seen.

Envelope recipients decide who must be served, header recipients never do. A refusal here costs the peer one
recipient and not the message.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..protocol.address import Kind, parse_address
from ..protocol.errors import Reply
from .config import domain_of
from .names import TOKEN, is_private
from .outcomes import NOT_SERVED, ONE_PEER, RECIPIENT_OK, SENDER_OK, STRANGER, TOO_LARGE, WRONG_SENDER
from .routing import LOCAL, Router, Side
from .verdict import Destination, Recipient

__all__ = ["HOME", "admit", "bare", "outside", "receive", "size_of"]

HOME = "home"
"""Destination of what is addressed to the gateway itself: RES to our system address, bounces."""


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
    if peer.identity == "strict" and outside(side, mail_from):
        return WRONG_SENDER
    return SENDER_OK


def outside(side: Side, mail_from: str) -> bool:
    """Whether a peer's envelope sender lies outside its domains: refused or logged, as `identity` says."""
    return side.peer is not None and bool(mail_from) and domain_of(mail_from) not in side.peer.domains


def receive(
    router: Router, side: Side, mail_from: str, size: int | None, path: str, earlier: Iterable[Recipient]
) -> Recipient:
    """The reply to RCPT and where the recipient goes. `earlier` are the recipients of this message so far."""
    destination = _destination(router, side, mail_from, bare(path))
    if destination is None:
        return Recipient(path, NOT_SERVED)
    if destination.side != HOME:
        others = {r.destination.side for r in earlier if r.reply.positive and r.destination} - {HOME, destination.side}
        if others:
            return Recipient(path, ONE_PEER)
        link = router.config.peers.get(destination.side)
        if link and link.max_size is not None and size is not None and size > link.max_size:
            return Recipient(path, TOO_LARGE)
    return Recipient(path, RECIPIENT_OK, destination)


def _destination(router: Router, side: Side, mail_from: str, rcpt: str) -> Destination | None:
    if is_private(rcpt):
        return None
    localpart, domain = rcpt.rpartition("@")[::2] if "@" in rcpt else (rcpt, "")
    own = router.local_of(domain) if domain else None
    address = parse_address(rcpt, side.local.region if side.peer is None else None)
    found = router.route(address)
    if own is not None:
        if address.kind is Kind.SYSTEM or (not mail_from and TOKEN.match(localpart.lower())):
            return Destination(HOME, rule="local.domain")
        if not mail_from and (found is None or (side.peer is not None and found.side != LOCAL)):
            # A bounce of what we sent for a sender whose number is not (or no longer) in our ranges.
            return Destination(HOME, rule="local.domain, null sender")
    if found is None or found.side == side.name != LOCAL:
        return None  # nobody's number, or back to where it came from
    if side.peer is not None:
        return found if found.side == LOCAL or side.peer.transit else None
    # The local side may write any domain behind a number: ours, a peer's, or the one its MMSC delivers in.
    return found if own is not None or domain_known(router, domain) else None


def domain_known(router: Router, domain: str) -> bool:
    """Whether a local client may write this domain behind a number."""
    domain = domain.lower()
    if not domain:
        return True
    theirs = (d for peer in router.config.peers.values() for d in (*peer.domains, peer.write_domain))
    inward = (domain_of(local.deliver_to) for local in router.config.local if local.deliver_to)
    return domain in router.own_domains or domain in theirs or domain in inward

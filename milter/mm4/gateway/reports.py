"""Reports: which message one is about, whether it was asked for, and to whom it goes back.

Whoever received a message reports on it, so a report from a peer is about what we sent to that very peer, and one
from the local side about what came in. It is told apart by message id and recipient and goes to where the message came
from, whatever its envelope says. One peer never reports on what went to another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ..protocol.address import Address, Kind, parse_address
from ..protocol.pdu import Pdu
from ..protocol.transaction import INTERNET, Direction, Original
from .localside import Local
from .outcomes import RECIPIENT_OK
from .routing import LOCAL, Router, Side
from .verdict import Destination, Question, Recipient

__all__ = ["REPORTS", "Report", "addressees", "original_of", "outward_values", "question_of"]


@dataclass(frozen=True, slots=True)
class Report:
    """A kind of report: `asked` is the field by which a forward.REQ asks for it, `says` the one that holds the news."""

    asked: str
    says: str
    source: str

    def wanted(self, original: Original) -> bool:
        """Whether the originator asked for such a report."""
        return bool(getattr(original, self.asked))


_TOLD = (Kind.E164, Kind.SHORT_CODE, Kind.EMAIL)

REPORTS: Mapping[str, Report] = MappingProxyType(
    {
        "MM4_delivery_report.REQ": Report(
            "delivery_report",
            "mm_status",
            "TS 23.140 8.4.2; tyntec's document, operations: only if X-Mms-Delivery-Report is enabled in the REQ",
        ),
        "MM4_read_reply_report.REQ": Report(
            "read_reply",
            "read_status",
            "TS 23.140 8.4.3; tyntec's document, operations: only if X-Mms-Read-Reply is enabled in the REQ",
        ),
    }
)


def question_of(pdu: Pdu, side: Side) -> Question | None:
    """What has to be known of earlier messages to judge `pdu`; None where nothing is needed, or it names no message."""
    reporter, message_id = pdu.get("sender"), pdu.get("message_id")
    if pdu.type not in REPORTS or not message_id or not isinstance(reporter, Address):
        return None
    if side.peer is None:
        return Question(message_id, reporter.key, Direction.IN, None)
    return Question(message_id, reporter.key, Direction.OUT, side.name)


def original_of(
    pdu: Pdu, side: Side, originals: Iterable[Original], envelope: Iterable[Address], router: Router
) -> Original | None:
    """The message that a report is about, None where nobody knows it.

    Two peers may have used one message id. Then the one counts whose originator the report is addressed to, in its
    `envelope` or else in To, and of those the one of the peer whose domain stands there; else the newest (`originals`
    come newest first).
    """
    question = question_of(pdu, side)
    if question is None:
        return None
    addressed = tuple(envelope)
    told = {address.key for address in addressed}, {address.key for address in pdu.recipients}
    domains = {(address.domain or "").lower() for address in (*addressed, *pdu.recipients)}

    def fit(original: Original) -> tuple[bool, bool, bool]:
        peer = router.config.peers.get(original.source)
        theirs = {*peer.domains, peer.write_domain} if peer else set(router.own_domains)
        return original.originator in told[0], original.originator in told[1], bool(domains & theirs)

    # The first of equals is the newest.
    return max((original for original in originals if question.fits(original)), key=fit, default=None)


def addressees(
    original: Original, router: Router, named: tuple[Recipient, ...], local: Local
) -> tuple[Recipient, ...]:
    """The originator of a message, as a report about it is addressed to him; empty where no way leads there.

    `local` is the identity of ours that is asked for an originator who has no number.

    Where his peer is gone from the configuration, or his number from our ranges, or his operator is in the addresses of
    his peer and not known, the way that the envelope found to him (`named`) is as good as any; whoever else the
    envelope names gets nothing.
    """
    address = parse_address(original.originator)
    found: Destination | None = None
    if original.source in router.config.peers and address.kind in _TOLD:
        found = router.outward(address, original.source, "the message came from there")
    elif original.source == LOCAL:
        found = router.inward(address, local)
    if found is not None and found.becomes is not None:
        return (Recipient(address.write(), RECIPIENT_OK, found),)
    # No report goes out as Internet mail: without its MM4 headers it says nothing.
    ways = ((r, r.destination) for r in named if r.destination and r.destination.side != INTERNET)
    return tuple(r for r, way in ways if way.number == original.originator)


def outward_values(pdu: Pdu, original: Original, local: Local) -> dict[str, Any]:
    """What a report says on its way to a peer, whatever stood there: acks come to us, and To is the originator."""
    values: dict[str, Any] = {"sender_header": parse_address(local.system_address)}
    if original.originator not in {address.key for address in pdu.recipients}:
        values["recipients"] = (parse_address(original.originator),)
    return values

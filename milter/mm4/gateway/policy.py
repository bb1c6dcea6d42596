"""What a peer's entry says of one message: may it come, how often, how large, and with what in it.

Which rule holds in which direction stands with each key in `peer`. A body is read for a forward.REQ only, and only
where the peer that it comes from, or one that it goes to, has a rule that needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, time, timedelta

from ..protocol.address import Address
from ..protocol.content import Content, Scanner
from ..protocol.headers import Header
from ..protocol.limits import Bucket, Limit, Quota, Repetition, Taken
from ..protocol.pdu import Pdu
from .config import Config
from .peer import Peer
from .routing import Side
from .terms import OriginatorRate
from .verdict import Recipient

__all__ = ["at_mail", "crowded", "flooded", "floods", "limits_of", "objection", "scanner_of", "unwelcome"]

FORWARD = "MM4_forward.REQ"
_LONGEST_KEY = 80


def scanner_of(
    pdu: Pdu, headers: Sequence[Header], side: Side, recipients: Iterable[Recipient], config: Config
) -> Scanner | None:
    """What reads the body of this message; None where no rule needs it."""
    theirs = [side.peer] if side.peer is not None and side.peer.reads_body else []
    ours = [peer for peer in _towards(recipients, config) if peer.judges_content]
    if pdu.type != FORWARD or not (theirs or ours):
        return None
    sizes = [peer.max_size for peer in (*theirs, *ours) if peer.max_size is not None]
    return Scanner(headers, min(sizes, default=None), digest=any(peer.flood for peer in theirs))


def objection(
    side: Side, recipients: Iterable[Recipient], config: Config, content: Content | None
) -> str | None:
    """Why the content of a message may not come from this side, or not go to a peer; None where it may."""
    if content is None:
        return None
    peers = ([side.peer] if side.peer is not None else []) + _towards(recipients, config)
    return next((reason for peer in peers if (reason := _objection(peer, content))), None)


def _objection(peer: Peer, content: Content) -> str | None:
    if peer.reads_body and peer.max_size is not None and content.wire > peer.max_size:
        return f"the message is larger than {peer.max_size} bytes"
    if not peer.judges_content:
        return None
    if content.problem is not None:
        return f"the content cannot be judged: {content.problem}"
    if peer.max_content is not None and content.decoded > peer.max_content:
        return f"the content has {content.decoded} bytes, {peer.max_content} are agreed"
    for kind in (*content.containers, *content.types):
        if _among(kind, peer.content.refuse):
            return f"{kind[:100]} is refused"
    for kind in content.types:
        if peer.content.allow and not _among(kind, peer.content.allow):
            return f"{kind[:100]} is none of the content types agreed"
    return None


def _among(kind: str, patterns: Sequence[str]) -> bool:
    return any(kind.startswith(p[:-1]) if p.endswith("/*") else kind == p for p in patterns)


def _towards(recipients: Iterable[Recipient], config: Config) -> list[Peer]:
    """The peers to which a message goes."""
    names = dict.fromkeys(r.destination.side for r in recipients if r.destination)
    return [config.peers[name] for name in names if name in config.peers]


def crowded(side: Side, target: str, config: Config, accepted: Sequence[str]) -> bool:
    """Whether one recipient more, for the side `target`, is one too many beside those of the sides `accepted`."""
    if side.peer is not None and side.peer.max_recipients is not None and len(accepted) >= side.peer.max_recipients:
        return True
    peer = config.peers.get(target)
    return peer is not None and peer.max_recipients is not None and accepted.count(target) >= peer.max_recipients


def unwelcome(side: Side, pdu: Pdu) -> str | None:
    """What is said of a PDU that this peer may not send; None where it may, and where its type is none of the six."""
    if side.peer is None or pdu.type is None or side.peer.may_send(pdu.type):
        return None
    return f"this peer may not send {pdu.type}"


def at_mail(side: Side) -> Bucket | None:
    """The limit that is looked at before a message is let in: who sends too fast need not send it all.

    The day's is not: a RES, which counts for no limit, would be kept out until midnight.
    """
    return _bucket("second", side.name, side.peer.rate) if side.peer is not None else None


def limits_of(side: Side, pdu: Pdu, content: Content | None, now: datetime) -> tuple[Limit, ...]:
    """The limits for which a REQ of a peer counts, whatever becomes of it: sent again, it counts again.

    A RES counts for none: how many of them come is our own doing.
    """
    peer = side.peer
    if peer is None or not pdu.mm4 or pdu.is_answer:
        return ()
    limits: list[Limit] = []
    originator = pdu.get("sender")
    if isinstance(originator, Address):
        limits += _of(f"{side.name} {_bounded(originator.key)}", "originator ", peer.rate.originator, now)
    limits += _of(side.name, "", peer.rate, now)
    if peer.flood is not None and content is not None and content.digest is not None:
        limits.append(Repetition(f"flood {side.name} {content.digest}", "flood", peer.flood.window))
    return tuple(limits)


def _of(who: str, whose: str, rate: OriginatorRate, now: datetime) -> Iterator[Limit]:
    bucket = _bucket(f"{whose}second", who, rate)
    if bucket is not None:
        yield bucket
    if rate.day is not None:
        midnight = datetime.combine(now.astimezone(UTC).date() + timedelta(days=1), time(), UTC)
        yield Quota(f"{whose}day {who}", f"{whose}day", rate.day, midnight)


def _bucket(name: str, who: str, rate: OriginatorRate) -> Bucket | None:
    return Bucket(f"{name} {who}", name, 1 / rate.second, rate.at_once) if rate.second is not None else None


def _bounded(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]


def floods(side: Side) -> str | None:
    """What is done about the same content over and over: reject, hold or log; None where nobody looks."""
    return side.peer.flood.action if side.peer is not None and side.peer.flood is not None else None


def flooded(side: Side, taken: Taken) -> str | None:
    """What is said of a message whose content came too often; None where it did not."""
    flood = side.peer.flood if side.peer is not None else None
    if flood is None or taken.copies <= flood.limit:
        return None
    return f"the same content for the {taken.copies}th time, {flood.limit} are let through in {flood.window} s"

"""The sides that one message goes to, and what each further one needs beside the first.

The first side's part goes on in the message as it came. Each further one is a recipient of the responder,
`<token>.split@responder.mm4.invalid`, and a message of its own in the store: the responder makes its mail of the first
side's and submits it. So one 250 is the truth for all: Postfix has the message, with every part's token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..protocol.errors import ProtocolError
from ..protocol.headers import Header
from ..protocol.transaction import Answer, Split
from .edits import undoing
from .names import RESPONDER_DOMAIN, public_name, split_name
from .routing import LOCAL, Router
from .verdict import Destination, Part, Recipient

__all__ = ["answered", "one_answer", "parted", "side_key", "split", "split_recipient", "split_tokens"]

Waiting = tuple[Answer | None, str | None]
"""The RES that is recorded with a part, and, where it waits for another's word, to where it will go."""


def side_key(destination: Destination, router: Router) -> tuple[str, str]:
    """What tells one side from another: the peer, or the identity of ours whose subscriber it is."""
    if destination.side != LOCAL:
        return destination.side, ""
    served = router.serves(destination.number or "")
    return LOCAL, (served[1] if served else router.config.home).domain


def parted(recipients: Iterable[Recipient], router: Router) -> list[tuple[Recipient, ...]]:
    """The recipients by side, in the order in which the sides were first named."""
    sides: dict[tuple[str, str], list[Recipient]] = {}
    for recipient in recipients:
        if recipient.destination is not None:
            sides.setdefault(side_key(recipient.destination, router), []).append(recipient)
    return [tuple(side) for side in sides.values()]


def split_tokens(token: str, count: int) -> list[str]:
    """The tokens of the parts for `count` sides of the message with this token, which is the first one's; nobody finds
    the others without it.
    """
    return [token, *(public_name(token, f"split {number}") for number in range(1, count))]


def split_recipient(token: str) -> tuple[str, str]:
    """The recipient that brings the responder a message to split. What cannot be split until Postfix gives it up comes
    home as a bounce, and the originator is told.
    """
    return f"{split_name(token)}@{RESPONDER_DOMAIN}", "NOTIFY=FAILURE"


def one_answer(waiting: Iterable[Waiting], answer: Answer | None) -> list[Waiting]:
    """The RES of each part for a peer, who gets one for all that he asked for: held with the first part that waits for
    the MMSC's word, or else with the first part.
    """
    found = list(waiting)
    bearer = next((i for i, (_, reply_to) in enumerate(found) if reply_to is not None), None)
    if bearer is None:
        bearer, found[0] = 0, (answer, None)
    return [what if i == bearer else (None, None) for i, what in enumerate(found)]


def answered(parts: Iterable[Part], waiting: Iterable[Waiting]) -> list[Part]:
    """The parts with the RES of each in its record."""
    return [
        replace(part, record=replace(part.record, answer=answer, reply_to=reply_to))
        for part, (answer, reply_to) in zip(parts, waiting, strict=True)
    ]


def split(
    parts: Iterable[Part], headers: Sequence[Header], added: Callable[[Part], tuple[tuple[str, str], ...]]
) -> list[Part]:
    """The parts as they are kept: all but the first with what the responder makes its mail of.

    `headers` are those of the message as it came, `added` gives a part's envelope recipients with their parameters.
    Raises ProtocolError for an address that is not ASCII: nobody could submit it.
    """
    first, *further = parts
    return [first, *(_split_from(first, part, headers, added(part)) for part in further)]


def _split_from(
    first: Part, part: Part, headers: Sequence[Header], added: tuple[tuple[str, str], ...]
) -> Part:
    addresses = dict(added)
    pairs = dict.fromkeys(
        (r.destination.number or r.raw.strip("<>"), r.destination.becomes)
        for r in part.targets
        if r.destination and r.destination.becomes
    )
    for address in (part.mail_from, *addresses):
        if not address.isascii():
            raise ProtocolError(f"{address!a} cannot stand in an envelope")
    made = Split(
        part.record.queue_id,
        part.mail_from,
        next(iter(addresses.values()), "NOTIFY=FAILURE").removeprefix("NOTIFY="),
        tuple(pairs),
        tuple((e.op, e.header, e.occurrence, e.value) for e in (*undoing(first.edits, headers), *part.edits)),
    )
    return replace(part, record=replace(part.record, queue_id="", split=made, split_of=first.record.token))

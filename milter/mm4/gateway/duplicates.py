"""Duplicates: what makes a REQ this one beside its ids, and what becomes of one that came before.

A peer that got no RES sends its REQ again with the same ids. It is not delivered a second time, and its RES is the
first one's. The same ids with other content are no duplicate: some systems count from one after every restart.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ..protocol.address import Address
from ..protocol.pdu import Pdu
from ..protocol.transaction import Message, Recording
from .outcomes import ACCEPTED, IN_PROGRESS
from .rewriting import commit_recipient
from .sides import split_recipient
from .verdict import Action, Mail, Recipient, Verdict

__all__ = ["digest", "settled"]

_TELLING = ("sender", "subject", "message_class", "content_type", "mm_status", "read_status")
"""Fields that differ between two messages with the same ids. Left out: what is new each time that a REQ is sent again
(Date, and the boundary in Content-Type), and what systems on the way add."""


def digest(pdu: Pdu) -> str:
    """A digest of what a PDU says, in hex; the same for the same PDU sent again."""
    told = [pdu.type or pdu.type_text or ""]
    for name in _TELLING:
        value = pdu.get(name)
        told.append(value.key if isinstance(value, Address) else "" if value is None else str(value))
    return hashlib.sha256("\0".join(told).encode("utf-8", "backslashreplace")).hexdigest()[:32]


def settled(verdict: Verdict, mail: Mail, recording: Recording) -> Verdict:
    """The verdict in the light of what the store found: nobody gets twice what he has."""
    if recording.pending:
        # The first copy's fate is not known yet: Postfix may refuse it, and then this one is the message.
        reason = "the same message is undecided"
        return Verdict(Action.TEMPFAIL, IN_PROGRESS, verdict.direction, verdict.pdu, reason=reason)
    if recording.conflict is not None:
        verdict = replace(verdict, reason=verdict.reason or f"same ids as {recording.conflict}, other content")
    if not recording.repeated:
        return verdict
    asked = verdict.answers or (verdict.record is not None and verdict.record.answer is not None)
    answers = (recording.answer,) if recording.answer and asked else verdict.answers
    record = replace(verdict.record, answer=answers[0] if answers else None) if verdict.record else None
    left = _left(verdict.targets, recording)
    served = {target.destination.becomes for target in left if target.destination}
    if not left or _all_have(verdict.record, recording):
        left, served = (), set()
    # One of whom all have it already still brings the RES that was recorded with it.
    splits = tuple(
        replace(part, targets=_left(part.targets, recording))
        for part in verdict.splits
        if not _all_have(part.record, recording) or (part.record.answer and recording.answer)
    )
    if served or splits:
        # New for some: they get it, and the RES speaks for all.
        kept = {commit_recipient(mail.token), *(split_recipient(part.record.token) for part in splits)}
        added = tuple(pair for pair in verdict.added if pair[0] in served or pair in kept)
        reason = f"a duplicate for {len(recording.repeated)} of its recipients"
        verdict = replace(verdict, added=added, targets=left, splits=splits, reason=verdict.reason or reason)
        return verdict if served else replace(verdict, record=record, answers=answers)
    return Verdict(
        Action.ACCEPT,
        ACCEPTED,
        verdict.direction,
        verdict.pdu,
        status=answers[0].status if answers else verdict.status,
        reason="a duplicate",
        deleted=tuple(r.raw for r in mail.recipients),
        added=(commit_recipient(mail.token),),
        record=record,
        answers=answers,
    )


def _all_have(record: Message | None, recording: Recording) -> bool:
    return record is not None and {t.recipient for t in record.transactions} <= set(recording.repeated)


def _left(targets: tuple[Recipient, ...], recording: Recording) -> tuple[Recipient, ...]:
    """Those who have not got it."""
    return tuple(t for t in targets if t.destination is None or t.destination.number not in recording.repeated)

"""A RES that comes in: what it answers, and who waits for it. It ends here, or is passed on, and is never answered.

One that says of which transaction it speaks and what became of it is taken, whatever else is wrong with it: refused,
it would come home to its sender as a bounce, and its REQ would stay unanswered.
"""

from __future__ import annotations

from dataclasses import replace

from ..protocol.address import Kind
from ..protocol.retry import TRANSIENT
from ..protocol.transaction import Direction, Message, State
from .answers import restated
from .envelope import bare
from .outcomes import ACCEPTED, CORRUPT, DENIED, ENDED, REPLIES, UNSUPPORTED
from .policy import unwelcome
from .rewriting import commit_recipient
from .routing import LOCAL, Router, Side
from .verdict import Action, Arrival, Mail, Verdict

__all__ = ["answer_received"]

_SAYING = frozenset({None, "message_type", "transaction_id", "status_code"})
"""Fields without which a RES says nothing; None is the header block as a whole."""

_LONGEST_TEXT = 500
"""Characters of a Status-Text that are worth remembering."""


def answer_received(mail: Mail, router: Router, side: Side, *, monitor: bool) -> Verdict:
    """The verdict on a RES. With `monitor` one that says nothing is logged and dropped instead of refused."""
    pdu = mail.pdu
    direction = Direction.IN if side.peer else Direction.OUT
    errors = {problem.field for problem in pdu.errors}
    denied = unwelcome(side, pdu)
    if denied is not None and not monitor:
        return Verdict(Action.REJECT, REPLIES[DENIED], direction, pdu, status=DENIED, reason=denied)
    if pdu.type is None or errors & _SAYING:
        problem = pdu.errors[0].text if pdu.errors else "unknown type"
        if monitor:
            return Verdict(Action.DISCARD, ENDED, direction, pdu, reason=problem)
        status = CORRUPT if pdu.type else UNSUPPORTED
        return Verdict(Action.REJECT, REPLIES[status], direction, pdu, status=status, reason=problem)
    held = _held(mail, side)
    final = _final(mail, router, side, held) if held is not None else None
    passed_on = _passed_on(mail, router, side, direction, held, final) if held is not None and final else None
    if side.peer is None:
        unwanted = (
            "no REQ waits for this RES: the gateway answers peers, or nobody knows it"
            if held is None
            else "it speaks of some recipients only, and the peer gets one RES"
        )
        return passed_on or Verdict(Action.DISCARD, ENDED, direction, pdu, reason=unwanted)
    arrival = Arrival(
        side.name,
        pdu.type,
        pdu.get("transaction_id"),
        None if "message_id" in errors else pdu.get("message_id"),
        pdu.get("status_code"),
        (pdu.get("status_text") or "")[:_LONGEST_TEXT] or None,
        tuple(a.key for a in pdu.get("request_recipients") or () if a.kind is not Kind.INVALID),
    )
    reason = f"monitor: {denied}" if denied else pdu.errors[0].text if errors else None
    if passed_on is not None:
        return replace(passed_on, arrival=arrival, reason=reason)
    return Verdict(Action.DISCARD, ENDED, direction, pdu, status=arrival.status, reason=reason, arrival=arrival)


def _held(mail: Mail, side: Side) -> Message | None:
    """The message whose own RES waits for this one.

    Two peers may have used the same ids: then the one counts to whom this RES is addressed, else the newest.
    """
    pdu = mail.pdu
    ids = pdu.get("transaction_id"), pdu.get("message_id")
    way = Direction.IN if side.peer is None else Direction.OUT
    kind = (pdu.type or "").removesuffix(".RES") + ".REQ"
    told = {bare(r.raw).lower() for r in mail.recipients} | {a.as_given().lower() for a in pdu.recipients}
    fitting = [
        message
        for message in mail.held
        if message.direction is way
        and message.type == kind
        and message.answer is not None
        and any(ids[0] == t.transaction_id and ids[1] in (None, t.message_id) for t in message.transactions)
    ]
    return max(fitting, key=lambda message: (message.reply_to or "").lower() in told, default=None)


def _final(mail: Mail, router: Router, side: Side, held: Message) -> str | None:
    """The status that is passed on: one word for all recipients. None while that cannot be said.

    Outward, a RES may speak of some recipients, and others follow: the first error counts, else Ok. Inward, an Ok for
    some is no Ok for all. An error that may pass is not the last word where the message is sent again.
    """
    pdu = mail.pdu
    status = str(pdu.get("status_code"))
    named = {a.key for a in pdu.get("request_recipients") or () if a.kind is not Kind.INVALID}
    everybody = {transaction.recipient for transaction in held.transactions}
    if named and not named & everybody:
        return None
    if side.peer is None:
        return None if named and status == "Ok" and not everybody <= named else status
    if status in TRANSIENT and side.peer.ack.retry:
        return None
    said = {t.recipient: t.status or "Ok" for t in held.transactions if t.state is State.ANSWERED}
    # The first word of a recipient stands, but for an error that may pass.
    told = said | {r: status for r in named or everybody if r not in said or said[r] in TRANSIENT}
    if not everybody <= told.keys():
        return None
    return next((told[r] for r in sorted(everybody) if told[r] != "Ok"), "Ok")


def _passed_on(
    mail: Mail, router: Router, side: Side, direction: Direction, held: Message, status: str
) -> Verdict:
    """A RES for whom it was waited for: in the terms of the one who asked, with his ids as they were."""
    pdu = mail.pdu
    told = LOCAL if held.direction is Direction.OUT else held.peer
    peer = router.config.peers.get(told)
    text = pdu.get("status_text") if peer is None or peer.res.status_text is not False else None
    assert held.answer is not None
    answer = restated(held.answer, status, text, router.dialect(told))
    record = Message(
        mail.token, direction, held.peer, pdu.type or "", mail.queue_id, mail.host, mail.now, (),
        answer=answer, source=side.name, copy_of=held.token,
    )  # fmt: skip
    return Verdict(
        Action.ACCEPT,
        ACCEPTED,
        direction,
        pdu,
        status=answer.status,
        deleted=tuple(r.raw for r in mail.recipients),
        added=(commit_recipient(mail.token),),
        record=record,
        answers=(answer,),
    )

"""The decision about one message: bytes and configuration in, a Verdict out.

No I/O, no clock: who asked, what came, when and under which token stand in the Mail. The order of the questions
is always the same: what is it, is it right, where does it go, what changes, what is answered.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ..protocol.address import Address
from ..protocol.errors import ProtocolError, Reply
from ..protocol.text import one_line
from ..protocol.transaction import Answer, Direction, Message, State
from .answers import answer_address, compose_answer, mmsc_address
from .case import Case, case_of, number_of, record_of
from .edits import MAX_CHANGED, Edit
from .forms import hidden
from .identities import concerns, impostor, towards
from .internet import INTERNET
from .names import SIDE_HEADER, strip_via
from .originator import outside, own_number
from .outcomes import (
    ACCEPTED,
    CORRUPT,
    DENIED,
    ENDED,
    LIMITS,
    NO_RES_ADDRESS,
    NOT_ACCEPTED,
    NOT_FOUND,
    NOT_SERVED,
    REPLIES,
    TOO_OFTEN,
    WRONG_ORIGINATOR,
)
from .parts import part_for, sender_side
from .policy import flooded, floods, objection, unwelcome
from .received import answer_received
from .rewriting import COMPLETABLE, commit_recipient, replacements, success_wanted
from .routing import LOCAL, Router, Side
from .sides import answered, one_answer, parted, split, split_recipient, split_tokens
from .verdict import Action, Mail, Part, Verdict

__all__ = ["decide"]


def decide(mail: Mail, router: Router, side: Side) -> Verdict:
    """The verdict on `mail` from `side`. Raises nothing but the project's errors."""
    return _Decision(case_of(mail, router, side)).verdict()


class _Decision:
    """One message, one configuration, one verdict."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.mail = case.mail
        self.router = case.router
        self.side = case.side
        self.pdu = case.mail.pdu
        self.targets = case.targets
        self.direction = Direction.IN if case.side.peer else Direction.OUT

    def verdict(self) -> Verdict:
        if self._is_bounce():
            return Verdict(Action.ACCEPT, ACCEPTED, self.direction, reason="bounce", edits=self._whose())
        pdu = self.pdu
        if not pdu.mm4:
            return self._refuse(REPLIES[CORRUPT], CORRUPT, "no MM4 header stands in this message")
        if foreign := impostor(self.side, pdu, self.mail.mail_from, self.router):
            return self._refuse(WRONG_ORIGINATOR, DENIED, foreign)
        if pdu.is_answer:
            held = tuple(m for m in self.mail.held if concerns(self.side, m, self.router))
            return answer_received(replace(self.mail, held=held), self.router, self.side, monitor=self.case.monitor)
        if self.mail.taken.over is not None:
            return self._too_often(self.mail.taken.over)
        finding = self._finding()
        if finding is not None:
            return self._counted(self._violation(*finding))
        if not self.targets:
            away = f"no way leads to {self.case.original.originator}, its originator" if self.case.original else None
            return self._refuse(NOT_SERVED, None, away or "no subscriber among the recipients, and this is no report")
        return self._watched(self._counted(self._forward()))

    # -- what is it

    def _is_bounce(self) -> bool:
        """A bounce for us, whoever made it: null sender, no MM4 of its own. It goes to the responder as it is.

        One may come to a subscriber's number, when a peer's MTA bounces what we sent in his name. Most are delivery
        status notifications (RFC 3464), some have a form of their own: the responder, which sees the body, tells.
        """
        if self.mail.mail_from or self.pdu.mm4:
            return False
        return all(
            r.raw.strip("<>").rpartition("@")[2].lower() in self.router.own_domains for r in self.mail.recipients
        )

    def _whose(self) -> tuple[Edit, ...]:
        """What tells the responder who brought a bounce: an address alone need not tell. Others' lines of it go."""
        forged = sum(header.name.lower() == SIDE_HEADER.lower() for header in self.mail.headers)
        value = f"{self.side.name} {self.mail.queue_id}"
        removed = (Edit("delete", SIDE_HEADER, number) for number in range(forged, 0, -1))
        return (*removed, Edit("add", SIDE_HEADER, value=value))

    def _finding(self) -> tuple[str, str] | None:
        """The first thing that is wrong with a REQ: its request status and what it is; None where it is right."""
        pdu = self.pdu
        denied = unwelcome(self.side, pdu)
        if denied is not None:
            return DENIED, denied
        for problem in pdu.errors:
            completable = COMPLETABLE.get(pdu.type or "", frozenset()) if self.side.peer is None else frozenset()
            if problem.rule == "mandatory" and problem.field in completable:
                continue
            where = f"{problem.header}: " if problem.header and problem.rule != "mandatory" else ""
            return problem.status or CORRUPT, where + problem.text
        if self.case.report is not None and self.case.original is None:
            way = "came here for" if self.side.peer is None else f"went to {self.side.name} for"
            return NOT_FOUND, f"no message {pdu.get('message_id')!r} {way} {pdu.raw('sender')}"
        beyond = any(r.destination and r.destination.side == INTERNET for r in self.targets)
        if beyond and hidden(pdu):
            return DENIED, "a sender who hides cannot write to an e-mail address (RFC 4356 2.1.3.2)"
        if self._circles():
            return DENIED, "the message runs in circles"
        if self.side.peer is not None:
            named = own_number(self.side.peer, pdu, self.mail.mail_from, self.router.serves)
            if named is not None:
                return DENIED, named
            away = outside(self.side.peer, pdu, "") if self.side.peer.identity == "strict" else ()
            if away:
                return DENIED, f"{away[0]} lies outside the domains of this peer"
        for place in pdu.found.get("ack_request", ()):
            if len(place.raw) >= MAX_CHANGED:
                return CORRUPT, f"{place.name} is too long to be changed"
        objected = objection(self.side, self.targets, self.router.config, self.mail.content)
        flood = flooded(self.side, self.mail.taken)
        if objected is None and flood is not None and floods(self.side) == "reject":
            objected = flood
        return (NOT_ACCEPTED, objected) if objected is not None else None

    def _circles(self) -> bool:
        received = sum(1 for h in self.mail.headers if h.name.lower() == "received")
        # Each operator of ours may have forwarded it once.
        hops = Counter(
            domain
            for domain, _ in {
                ((address.domain or "").lower(), index)
                for index, address in self.pdu.get("previously_sent_by") or ()
                if isinstance(address, Address)
            }
            if domain in self.router.own_domains
        )
        return (
            received > LIMITS["received"]
            or (self.pdu.get("forward_counter") or 0) > LIMITS["forward_counter"]
            or max(hops.values(), default=0) > LIMITS["own_hops"]
        )

    # -- what becomes of it

    def _too_often(self, limit: str) -> Verdict:
        reason = f"over the rate of this link: {limit}"
        return Verdict(Action.TEMPFAIL, TOO_OFTEN, self.direction, self.pdu, reason=reason, limit=limit)

    def _counted(self, verdict: Verdict) -> Verdict:
        said = flooded(self.side, self.mail.taken)
        return replace(verdict, reason=verdict.reason or said, limit="flood") if said is not None else verdict

    def _watched(self, verdict: Verdict) -> Verdict:
        """A message that goes on: held where its content came too often, and only logged under `monitor`."""
        if verdict.limit is None or verdict.action is not Action.ACCEPT or self.case.monitor:
            return verdict
        return replace(verdict, action=Action.HOLD) if floods(self.side) == "hold" else verdict

    def _violation(self, status: str, reason: str) -> Verdict:
        """A REQ that breaks a rule: answered, refused, or let through and logged, as the peer's entry says."""
        peer = self.side.peer
        reply = REPLIES[status]
        if peer is None:
            return self._refuse(Reply(reply.code, reply.enhanced, one_line(reason)), status, reason)
        if self.case.monitor and self.targets:
            return replace(self._forward(), status=status, reason=f"monitor: {reason}")
        rcpt_to = answer_address(self.pdu, self.mail.mail_from, self.side)
        if peer.on_violation == "reject" or not self._answerable():
            return self._refuse(reply, status, reason)
        if rcpt_to is None:
            return self._refuse(NO_RES_ADDRESS, status, reason)
        answer = self._answer(status, one_line(reason), rcpt_to)
        record = record_of(self.case, Direction.IN, self.side.name, State.REFUSED, status)
        return self._only_answered(record, answer, status, reason)

    def _forward(self) -> Verdict:
        """A REQ that goes on: to the local side, to a peer, or to several of these."""
        sides = parted(self.targets, self.router)
        target = sides[0][0].destination
        assert target is not None
        answer = None
        if self.side.peer is not None and self._answerable():
            rcpt_to = answer_address(self.pdu, self.mail.mail_from, self.side)
            if rcpt_to is not None:
                answer = self._answer("Ok", None, rcpt_to)
            elif not self.case.monitor:
                return self._refuse(NO_RES_ADDRESS, DENIED, "X-Mms-Originator-System is outside the peer's domains")
        if self.case.report is not None and (target.side != LOCAL or self.side.peer is None):
            if not (self.case.original and self.case.report.wanted(self.case.original)):
                return self._suppressed(target.side, answer, "the originator did not ask for this report")
            peer = self.router.config.peers.get(target.side)
            if self.case.report.asked == "delivery_report" and peer is not None and peer.delivery_report == "off":
                return self._suppressed(target.side, answer, "this peer gets no delivery reports")
        names = {side[0].destination.side for side in sides if side[0].destination} & self.router.config.peers.keys()
        strange = next((name for name in sorted(names) if towards(name, self.side, self.router) is None), None)
        if strange is not None:
            return self._refuse(REPLIES[DENIED], DENIED, f"{strange} is no peer of {self.case.local.domain}")
        try:
            tokens = split_tokens(self.mail.token, len(sides))
            parts = [part_for(self.case, side, token) for side, token in zip(sides, tokens, strict=True)]
            return self._accept(parts, answer)
        except ProtocolError as error:
            # The message cannot be written as a peer's dialect wants it: then nobody gets it, and that is what is said.
            if self.side.peer is not None and not self.case.monitor:
                return self._violation(CORRUPT, str(error))
            return self._refuse(Reply(554, "5.6.0", one_line(str(error))), CORRUPT, str(error))

    def _held_back(self, target: str, answer: Answer | None) -> tuple[Answer | None, str | None]:
        """The RES to this REQ that waits for another's word, and where it will go; None where the gateway answers.

        Inward that is the MMSC's, where it answers this peer itself; outward the peer's, where our MMSC asked for it.
        Where our MMSC asked and the gateway answers, only the address: a bounce may have to be told there.
        """
        if self.side.peer is not None:
            waits = answer is not None and self.side.peer.answers == "mmsc" and target == LOCAL
            return (answer, strip_via(answer.rcpt_to)) if answer is not None and waits else (None, None)
        peer = self.router.config.peers.get(target)
        reply_to = mmsc_address(self.pdu, sender_side(self.case)) if peer is not None or target == INTERNET else None
        waits = reply_to is not None and peer is not None and peer.answers == "mmsc"
        return self._answer("Ok", None, reply_to) if reply_to is not None and waits else None, reply_to

    def _suppressed(self, name: str, answer: Answer | None, reason: str) -> Verdict:
        """A report that nobody is to get: kept, answered where an ack was asked for, and not sent."""
        direction = Direction.IN if name == LOCAL else Direction.OUT
        record = record_of(self.case, direction, name, State.SUPPRESSED, ack_requested=False)
        if answer is None:
            return Verdict(Action.DISCARD, ENDED, self.direction, self.pdu, status="Ok", reason=reason, record=record)
        return self._only_answered(record, answer, "Ok", reason)

    def _only_answered(self, record: Message, answer: Answer, status: str, reason: str) -> Verdict:
        """A REQ that goes nowhere: kept, and answered."""
        return Verdict(
            Action.ACCEPT,
            ACCEPTED,
            self.direction,
            self.pdu,
            status=status,
            reason=reason,
            deleted=tuple(r.raw for r in self.mail.recipients),
            added=(commit_recipient(self.mail.token),),
            record=replace(record, answer=answer),
            answers=(answer,),
        )

    def _accept(self, parts: list[Part], answer: Answer | None) -> Verdict:
        waiting = [self._held_back(part.side, answer) for part in parts]
        if self.side.peer is not None:
            waiting = one_answer(waiting, answer)
        first, *splits = split(answered(parts, waiting), self.mail.headers, self._added)
        held = first.record.answer
        return Verdict(
            Action.ACCEPT,
            ACCEPTED,
            self.direction,
            self.pdu,
            status="Ok",
            mail_from=first.mail_from,
            mail_from_parameters=first.mail_from_parameters,
            deleted=tuple(r.raw for r in self.mail.recipients),
            added=(
                *self._added(first),
                commit_recipient(self.mail.token),
                *(split_recipient(part.record.token) for part in splits),
            ),
            targets=first.targets,
            edits=first.edits,
            record=first.record,
            answers=(held,) if held is not None and first.record.reply_to is None else (),
            splits=tuple(splits),
        )

    def _added(self, part: Part) -> tuple[tuple[str, str], ...]:
        return replacements(part.targets, success_wanted(self.pdu, self.side.peer))

    def _refuse(self, reply: Reply, status: str | None, reason: str) -> Verdict:
        return Verdict(Action.REJECT, reply, self.direction, self.pdu, status=status, reason=reason)

    # -- what is asked and remembered

    def _answerable(self) -> bool:
        """A RES was asked for, and answering cannot start a loop (class Auto from nobody is a machine's)."""
        automatic = self.pdu.get("message_class") == "Auto" and not self.mail.mail_from
        return self.pdu.ack_request and not automatic

    def _answer(self, status: str, text: str | None, rcpt_to: str) -> Answer:
        served = dict.fromkeys(number_of(r) for r in self.targets if number_of(r))
        return compose_answer(
            self.pdu, status, text, rcpt_to, served, self.side, self.case.dialect, self.mail.token, self.mail.now
        )

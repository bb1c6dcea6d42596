"""The decision about one message: bytes and configuration in, a Verdict out.

No I/O, no clock: who asked, what came, when and under which token stand in the Mail. The order of the questions
is always the same: what is it, is it right, where does it go, what changes, what is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ..protocol.address import Address, parse_address
from ..protocol.dialect import Dialect
from ..protocol.errors import ProtocolError, Reply
from ..protocol.headers import Header, unfold
from ..protocol.pdu import Pdu
from ..protocol.reader import read
from ..protocol.transaction import Answer, Direction, Message, State, Transaction
from .answers import answer_address, compose_answer, mmsc_address
from .duplicates import digest
from .edits import MAX_CHANGED, Edit, in_order
from .envelope import HOME
from .forms import Form, hidden
from .identities import acting, concerns, impostor, towards
from .internet import INTERNET, MMS_FORM, as_request, is_ordinary, mail_edits, mail_sender, request_values
from .lines import adapting_edits
from .localside import Local, LocalSide
from .names import SIDE_HEADER, strip_via
from .originator import outside, own_number
from .outcomes import (
    ACCEPTED,
    ENDED,
    LIMITS,
    NO_RES_ADDRESS,
    NOT_SERVED,
    REPLIES,
    TOO_OFTEN,
    WRONG_ORIGINATOR,
)
from .policy import flooded, floods, objection, unwelcome
from .received import answer_received
from .reports import REPORTS, addressees, original_of, outward_values
from .rewriting import (
    COMPLETABLE,
    commit_recipient,
    completions,
    inward_edits,
    inward_sender,
    outward_edits,
    outward_sender,
    replacements,
    success_wanted,
    system_sender,
)
from .routing import LOCAL, Router, Side
from .sides import answered, one_answer, parted, split, split_recipient, split_tokens
from .verdict import Action, Mail, Part, Recipient, Verdict

__all__ = ["decide", "read_mail"]

CORRUPT = "Error-message-format-corrupt"
UNSUPPORTED = "Error-unsupported-message"
DENIED = "Error-service-denied"
NOT_ACCEPTED = "Error-content-not-accepted"
NOT_FOUND = "Error-message-not-found"


def decide(mail: Mail, router: Router, side: Side) -> Verdict:
    """The verdict on `mail` from `side`. Raises nothing but the project's errors."""
    return _Decision(mail, router, side).verdict()


def read_mail(headers: Sequence[Header], mail_from: str, router: Router, side: Side) -> Pdu:
    """Header lines as a PDU, in the dialect of the side that they came from.

    Ordinary mail of somebody on our side, where it may become an MMS, is read as the forward.REQ that it will be.
    """
    pdu = read(headers, _dialect(router, side), side.region)
    ordinary = not pdu.mm4 and side.peer is None and bool(mail_from) and router.config.mail.submit
    return as_request(headers, side.region) if ordinary else pdu


def _dialect(router: Router, side: Side) -> Dialect:
    return router.dialect(side.name)


class _Decision:
    """One message, one configuration, one verdict."""

    def __init__(self, mail: Mail, router: Router, side: Side) -> None:
        self.mail = mail
        self.router = router
        self.pdu: Pdu = mail.pdu
        self.side = side = acting(side, mail.pdu, mail.mail_from, mail.recipients, router)
        self.local = side.local
        self.dialect: Dialect = _dialect(router, side)
        self.direction = Direction.IN if side.peer else Direction.OUT
        self.ordinary = is_ordinary(mail.pdu)
        numbers = tuple(r for r in mail.recipients if r.destination and r.destination.side != HOME)
        self.report = REPORTS.get(self.pdu.type or "")
        envelope = (parse_address(r.raw) for r in mail.recipients)
        self.original = original_of(self.pdu, side, mail.originals, envelope, router)
        self.targets = numbers if self.original is None else addressees(self.original, router, numbers, self.local)
        """Whom the message goes to: the envelope's subscribers; a report's only the originator."""
        self.monitor = side.peer is not None and side.peer.on_violation == "monitor"

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
            return answer_received(replace(self.mail, held=held), self.router, self.side, monitor=self.monitor)
        if self.mail.taken.over is not None:
            return self._too_often(self.mail.taken.over)
        finding = self._finding()
        if finding is not None:
            return self._counted(self._violation(*finding))
        if not self.targets:
            away = f"no way leads to {self.original.originator}, its originator" if self.original else None
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
        if self.report is not None and self.original is None:
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
        if verdict.limit is None or verdict.action is not Action.ACCEPT or self.monitor:
            return verdict
        return replace(verdict, action=Action.HOLD) if floods(self.side) == "hold" else verdict

    def _violation(self, status: str, reason: str) -> Verdict:
        """A REQ that breaks a rule: answered, refused, or let through and logged, as the peer's entry says."""
        peer = self.side.peer
        reply = REPLIES[status]
        if peer is None:
            return self._refuse(Reply(reply.code, reply.enhanced, _one_line(reason)), status, reason)
        if self.monitor and self.targets:
            return replace(self._forward(), status=status, reason=f"monitor: {reason}")
        rcpt_to = answer_address(self.pdu, self.mail.mail_from, self.side)
        if peer.on_violation == "reject" or not self._answerable():
            return self._refuse(reply, status, reason)
        if rcpt_to is None:
            return self._refuse(NO_RES_ADDRESS, status, reason)
        answer = self._answer(status, _one_line(reason), rcpt_to)
        return Verdict(
            Action.ACCEPT,
            ACCEPTED,
            self.direction,
            self.pdu,
            status=status,
            reason=reason,
            deleted=tuple(r.raw for r in self.mail.recipients),
            added=(commit_recipient(self.mail.token),),
            record=replace(self._record(Direction.IN, self.side.name, State.REFUSED, status), answer=answer),
            answers=(answer,),
        )

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
            elif not self.monitor:
                return self._refuse(NO_RES_ADDRESS, DENIED, "X-Mms-Originator-System is outside the peer's domains")
        if self.report is not None and (target.side != LOCAL or self.side.peer is None):
            if not (self.original and self.report.wanted(self.original)):
                return self._suppressed(target.side, answer, "the originator did not ask for this report")
            peer = self.router.config.peers.get(target.side)
            if self.report.asked == "delivery_report" and peer is not None and peer.delivery_report == "off":
                return self._suppressed(target.side, answer, "this peer gets no delivery reports")
        names = {side[0].destination.side for side in sides if side[0].destination} & self.router.config.peers.keys()
        strange = next((name for name in sorted(names) if towards(name, self.side, self.router) is None), None)
        if strange is not None:
            return self._refuse(REPLIES[DENIED], DENIED, f"{strange} is no peer of {self.local.domain}")
        try:
            tokens = split_tokens(self.mail.token, len(sides))
            parts = [self._part(side, token) for side, token in zip(sides, tokens, strict=True)]
            return self._accept(parts, answer)
        except ProtocolError as error:
            # The message cannot be written as a peer's dialect wants it: then nobody gets it, and that is what is said.
            if self.side.peer is not None and not self.monitor:
                return self._violation(CORRUPT, str(error))
            return self._refuse(Reply(554, "5.6.0", _one_line(str(error))), CORRUPT, str(error))

    def _held_back(self, target: str, answer: Answer | None) -> tuple[Answer | None, str | None]:
        """The RES to this REQ that waits for another's word, and where it will go; None where the gateway answers.

        Inward that is the MMSC's, where it answers this peer itself; outward the peer's, where our MMSC asked for it.
        Where our MMSC asked and the gateway answers, only the address: a bounce may have to be told there.
        """
        if self.side.peer is not None:
            waits = answer is not None and self.side.peer.answers == "mmsc" and target == LOCAL
            return (answer, strip_via(answer.rcpt_to)) if answer is not None and waits else (None, None)
        peer = self.router.config.peers.get(target)
        reply_to = mmsc_address(self.pdu, self._sender_side()) if peer is not None else None
        waits = reply_to is not None and peer is not None and peer.answers == "mmsc"
        return self._answer("Ok", None, reply_to) if reply_to is not None and waits else None, reply_to

    def _part(self, targets: tuple[Recipient, ...], token: str) -> Part:
        """What the side of these recipients gets. Raises ProtocolError."""
        destination = targets[0].destination
        assert destination is not None
        if destination.side == LOCAL:
            return self._submitted(targets, token) if self.ordinary else self._inward(targets, token)
        return self._internet(targets, token) if destination.side == INTERNET else self._outward(targets, token)

    def _sender_side(self) -> Local | LocalSide:
        """Which of our own systems sent this: the one that serves its originator."""
        sender = self.pdu.get("sender")
        served = self.router.serves(sender.key) if isinstance(sender, Address) else None
        return served.to if served else self.local

    def _inward(self, targets: tuple[Recipient, ...], token: str) -> Part:
        served = self.router.serves(_number(targets[0]))
        local = served.local if served else self.local
        sender, parameters = inward_sender(local, token)
        record = self._record(Direction.IN, self.side.name, State.RECORDED, None, targets=targets, token=token)
        # Where the MMSC answers, it gets the REQ as it is.
        answers = self.side.peer is None or self.side.peer.answers == "gateway"
        edits = inward_edits(self.pdu, self.mail.headers, local, answers=answers)
        return Part(LOCAL, targets, sender, parameters, tuple(in_order(edits)), record)

    def _outward(self, targets: tuple[Recipient, ...], token: str) -> Part:
        assert targets[0].destination is not None
        name = targets[0].destination.side
        peer = self.router.config.peers[name]
        local = towards(name, self.side, self.router)
        assert local is not None
        dialect = self.router.dialect(name)
        # Ids that are made are the same on every side: it is one message.
        completed = self._completed(dialect, local, targets)
        if self.original is not None:
            completed |= outward_values(self.pdu, self.original, local)
        lacking = {p.field for p in self.pdu.errors if p.rule == "mandatory"} - completed.keys() - {"message_type"}
        if lacking and not self.monitor:
            header = dialect.fields[sorted(f for f in lacking if f)[0]].header
            raise ProtocolError(f"{header} is missing and cannot be completed")
        if peer.mms_version is not None:
            completed["mms_version"] = peer.mms_version
        template = peer.addresses.header or (MMS_FORM if self.ordinary else None)
        form = Form(template, peer.write_domain) if template else None
        edits = outward_edits(self.pdu, self.dialect, dialect, local, completed, ack=peer.ack.request, form=form)
        edits = adapting_edits(self.mail.headers, edits, peer, dialect, self.pdu.type or "")
        if self.report is not None:
            sender, parameters = system_sender(local, peer, token)
        else:
            originator = self.pdu.get("sender") or completed.get("sender")
            sender, parameters = outward_sender(originator, local, peer, token)
        record = self._record(
            Direction.OUT, name, State.RECORDED, None, completed, peer.ack.request, targets=targets, token=token
        )
        return Part(name, targets, sender, parameters, tuple(in_order(edits)), record)

    def _submitted(self, targets: tuple[Recipient, ...], token: str) -> Part:
        """Ordinary mail of our side to a subscriber of ours: it becomes a forward.REQ like any other."""
        served = self.router.serves(_number(targets[0]))
        local = served[1] if served else self.local
        sender, parameters = inward_sender(local, token)
        completed = self._completed(self.dialect, local, targets)
        form = Form(local.addresses.header or MMS_FORM, local.domain)
        edits = outward_edits(self.pdu, self.dialect, self.dialect, local, completed, ack=False, form=form)
        record = self._record(
            Direction.IN, self.side.name, State.RECORDED, None, completed, False, targets=targets, token=token
        )
        return Part(LOCAL, targets, sender, parameters, tuple(in_order(edits)), record)

    def _internet(self, targets: tuple[Recipient, ...], token: str) -> Part:
        """A forward.REQ to e-mail addresses, which know nothing of MMS."""
        local, mail = self.local, self.mail
        completed = self._completed(self.dialect, local, targets)
        domain = self.router.config.mail.domain or local.domain
        edits = mail_edits(self.pdu, mail.headers, self.dialect, domain, mail.token, mail.now)
        originator = self.pdu.get("sender") or completed.get("sender")
        sender, parameters = mail_sender(self.pdu, originator, local, token)
        record = self._record(
            Direction.OUT, INTERNET, State.RECORDED, None, completed, False, targets=targets, token=token
        )
        return Part(INTERNET, targets, sender, parameters, tuple(in_order(edits)), record)

    def _completed(self, dialect: Dialect, local: Local, targets: tuple[Recipient, ...]) -> dict[str, Any]:
        mail = self.mail
        completed = completions(self.pdu, dialect, local, mail.mail_from, targets, mail.token, mail.now)
        return completed | request_values(mail.headers, self.pdu) if self.ordinary else completed

    def _suppressed(self, name: str, answer: Answer | None, reason: str) -> Verdict:
        """A report that nobody is to get: kept, answered where an ack was asked for, and not sent."""
        direction = Direction.IN if name == LOCAL else Direction.OUT
        record = self._record(direction, name, State.SUPPRESSED, None, ack_requested=False)
        record = replace(record, answer=answer)
        if answer is None:
            return Verdict(Action.DISCARD, ENDED, self.direction, self.pdu, status="Ok", reason=reason, record=record)
        return Verdict(
            Action.ACCEPT,
            ACCEPTED,
            self.direction,
            self.pdu,
            status="Ok",
            reason=reason,
            deleted=tuple(r.raw for r in self.mail.recipients),
            added=(commit_recipient(self.mail.token),),
            record=record,
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
        served = dict.fromkeys(_number(r) for r in self.targets if _number(r))
        return compose_answer(
            self.pdu, status, text, rcpt_to, served, self.side, self.dialect, self.mail.token, self.mail.now
        )

    def _record(
        self,
        direction: Direction,
        peer: str,
        state: State,
        status: str | None,
        completed: dict[str, Any] | None = None,
        ack_requested: bool | None = None,
        *,
        targets: tuple[Recipient, ...] | None = None,
        token: str | None = None,
    ) -> Message:
        """What is kept of the message for one side; of all its recipients where it goes to none."""
        pdu, completed = self.pdu, completed or {}
        originator = pdu.get("sender") or completed.get("sender")
        recipients = dict.fromkeys(_number(r) or r.raw.strip("<>") for r in targets or self.targets) or dict.fromkeys(
            r.raw.strip("<>") for r in self.mail.recipients
        )
        if self.original is not None:
            recipients = {self.original.originator: None}
        asked = pdu.ack_request if ack_requested is None else ack_requested
        due_at = self._due_at(direction, peer, asked)
        transactions = tuple(
            Transaction(
                transaction_id=pdu.get("transaction_id") or completed.get("transaction_id") or "",
                message_id=pdu.get("message_id") or completed.get("message_id") or "",
                originator=originator.key if isinstance(originator, Address) else "",
                recipient=recipient,
                state=state,
                status=status,
                ack_requested=asked,
                due_at=due_at,
                delivery_report=bool(pdu.get("delivery_report") or pdu.get("originator_rs_report")),
                read_reply=bool(pdu.get("read_reply")),
                report=pdu.get(self.report.says) if self.report else None,
            )
            for recipient in recipients
        )
        mail = self.mail
        kind = pdu.type or _one_line(pdu.type_text or "")
        return Message(
            token or mail.token,
            direction,
            peer,
            kind,
            mail.queue_id,
            mail.host,
            mail.now,
            transactions,
            source=self.side.name,
            digest=digest(pdu),
            size=mail.size,
            expires_at=self._expires_at(),
        )

    def _due_at(self, direction: Direction, peer: str, asked: bool) -> datetime | None:
        """When the RES that a peer was asked for is overdue."""
        link = self.router.config.peers.get(peer) if direction is Direction.OUT and asked else None
        return self.mail.now + timedelta(seconds=link.ack.timeout) if link else None

    def _expires_at(self) -> datetime | None:
        """X-Mms-Expiry as a moment; seconds count from now."""
        expiry = self.pdu.get("expiry")
        if isinstance(expiry, timedelta):
            return self.mail.now + expiry
        return expiry.astimezone(UTC) if isinstance(expiry, datetime) else None


def _number(recipient: Recipient) -> str:
    return (recipient.destination.number or "") if recipient.destination else ""


def _one_line(text: str) -> str:
    """A reason as it may stand in an SMTP reply or a Status-Text: one line of at most 200 printable characters."""
    clean = unfold(text.encode("ascii", "replace")).decode("ascii")
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in clean)[:200]

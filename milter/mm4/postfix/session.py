"""One SMTP session as the milter sees it: events in, replies and a committed verdict out.

Without pymilter, so that `mm4 explain` and the tests drive the very code that Postfix drives. Whatever goes
wrong here is temporary for the client: 4xx, one log line with the queue id, and the peer keeps the message.
State is per message and starts anew at MAIL; callbacks come on different threads, never two at once.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TypeVar

from ..gateway.case import read_mail
from ..gateway.decide import decide
from ..gateway.duplicates import settled
from ..gateway.envelope import admit, bare, receive, size_of
from ..gateway.identity import Client
from ..gateway.logline import logline
from ..gateway.originator import outside
from ..gateway.outcomes import DRAINING, TOO_OFTEN
from ..gateway.policy import at_mail, limits_of, scanner_of
from ..gateway.reports import question_of
from ..gateway.routing import LOCAL, Router, Side
from ..gateway.verdict import Action, Mail, Recipient, Verdict
from ..protocol.content import Scanner
from ..protocol.errors import InternalError, LookupUnavailable, Mm4Error, Reply, StoreError
from ..protocol.headers import MAX_HEADER_BYTES, MAX_HEADERS, Header
from ..protocol.limits import Limit, Taken, take
from ..protocol.pdu import Pdu
from ..protocol.transaction import Direction, Message, Original, Recording
from .runtime import Runtime

__all__ = ["Session"]

log = logging.getLogger("mm4.milter")

T = TypeVar("T")


class Session:
    """One client connection; any number of messages, one after the other."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.client = ""
        self.subject: str | None = None
        self.login: str | None = None
        self.fingerprint: str | None = None
        self.reads_bodies = True
        """Whether this connection shows bodies, if a rule needs them: agreed on before anything else."""
        self.connected = False
        self.open = False
        self._reset(runtime.router)

    def _reset(self, router: Router) -> None:
        self.router = router
        self.side: Side | None = None
        self.mail_from = ""
        self.size: int | None = None
        self.recipients: list[Recipient] = []
        self.headers: list[Header] = []
        self.header_bytes = 0
        self.queue_id = ""
        self.judged: Mail | None = None
        self.pdu: Pdu | None = None
        self.body_began = False
        self.scanner: Scanner | None = None
        self.fault: BaseException | None = None

    # -- events, in the order of SMTP

    def connect(self, address: str) -> None:
        """A client connected. Nothing is decided yet: EHLO, NOOP, QUIT alone make neither message nor alarm."""
        self.client = address
        self.connected = True
        self.runtime.count(connections=1)

    def identify(self, subject: str | None, login: str | None, fingerprint: str | None = None) -> None:
        """What else Postfix says of the client, before MAIL: the CN of a certificate that it trusts, a SASL login, and
        the SHA-256 fingerprint of any certificate, where a peer is known by one.
        """
        self.subject, self.login, self.fingerprint = subject or None, login or None, fingerprint or None

    def mail(self, path: str, parameters: Sequence[str] = (), router: Router | None = None) -> Reply:
        """MAIL: a new message begins, with the configuration by which the client was identified, or of this moment."""
        self.end()
        self._reset(router or self.runtime.router)
        if self.runtime.draining or (self.router.reads_bodies and not self.reads_bodies):
            # The second: a reload brought the first rule that needs a body. A new connection shows it.
            return DRAINING
        self.side = self.router.side(Client(self.client, self.subject, self.login, self.fingerprint))
        self.mail_from = bare(path)
        self.size = size_of(parameters)
        reply = admit(self.side, self.mail_from, self.size)
        if reply.positive:
            reply = self._in_time(reply)
        if not reply.positive:
            self._refused("mail", reply, mail_from=self.mail_from)
            return reply
        self.open = True
        self.runtime.count(messages=1)
        return reply

    def rcpt(self, path: str) -> Reply:
        """RCPT: one more recipient, or the reason why not."""
        if self.side is None:
            return InternalError.reply
        lookups = self.runtime.lookups
        try:
            recipient = receive(self.router, self.side, self.mail_from, self.size, path, self.recipients, lookups)
        except LookupUnavailable as error:
            self._refused("rcpt", error.reply, rcpt=bare(path), reason=str(error))
            return error.reply
        if recipient.reply.positive:
            self.recipients.append(recipient)
        else:
            self._refused("rcpt", recipient.reply, rcpt=bare(path))
        return recipient.reply

    def header(self, name: str, value: bytes) -> None:
        """One header line; kept up to the bounds, beyond them only counted."""
        # The line that goes over the bounds is kept too, so that the reader sees that they were crossed.
        if len(self.headers) <= MAX_HEADERS and self.header_bytes <= MAX_HEADER_BYTES:
            self.headers.append(Header(name, value))
        self.header_bytes += len(name) + len(value)

    def body(self, chunk: bytes) -> bool:
        """One piece of the body; whether the next one is wanted."""
        if not self.body_began and self.side is not None:
            self.body_began = True
            pdu = self._read(self.side)
            self.scanner = scanner_of(pdu, self.headers, self.side, self.recipients, self.router.config)
        return self.scanner is not None and self.scanner.feed(chunk)

    def verdict(self) -> Verdict:
        """The end of the message: decide, commit, and only then say so. Never raises."""
        started = time.monotonic()
        try:
            if self.fault is not None:
                raise InternalError(f"an earlier event failed: {self.fault!r}")
            verdict = self._commit(self._decide(started), started)
        except Mm4Error as error:
            verdict = Verdict(Action.TEMPFAIL, error.reply, self._direction(), reason=str(error))
        except Exception as error:
            # A fault of ours: the client keeps the message, the log has the detail in one line.
            verdict = Verdict(Action.TEMPFAIL, InternalError.reply, self._direction(), reason=f"fault: {error!r}")
            log.debug("fault in eom", exc_info=True)
        self._log(verdict, time.monotonic() - started)
        self.end()
        return verdict

    def end(self) -> None:
        """The message is over: judged, reset, or its client gone."""
        if self.open:
            self.open = False
            self.runtime.count(messages=-1)

    def close(self) -> None:
        """The connection is over; one that only asked whether somebody is there never began."""
        self.end()
        if self.connected:
            self.connected = False
            self.runtime.count(connections=-1)

    # -- inside

    def _direction(self) -> Direction:
        return Direction.OUT if self.side is None or self.side.peer is None else Direction.IN

    def _in_time(self, reply: Reply) -> Reply:
        """The reply to MAIL, in the light of how fast this peer sends."""
        limit = at_mail(self.side) if self.side is not None else None
        history = self.runtime.history or self.runtime.store
        if limit is None or history is None:
            return reply
        try:
            standing = history.standings([limit.key]).get(limit.key)
        except StoreError as error:
            return error.reply
        return TOO_OFTEN if limit.after(standing, self.runtime.clock()) is None else reply

    def _read(self, side: Side) -> Pdu:
        if self.pdu is None:
            self.pdu = read_mail(self.headers, self.mail_from, self.router, side)
        return self.pdu

    def _taken(self, limits: Sequence[Limit], now: datetime, started: float) -> Taken:
        """What the limits say of this message, which counts for them from now on; in a dry run it does not."""
        if not limits:
            return Taken()
        if self.runtime.store is not None:
            return self._committed(self.runtime.store.take(limits, now), started)
        history = self.runtime.history
        return take(limits, history.standings([limit.key for limit in limits]), now) if history else Taken()

    def _decide(self, started: float) -> Verdict:
        if self.side is None:
            raise InternalError("end of message without MAIL")
        pdu = self._read(self.side)
        now = self.runtime.clock()
        if self.router.reads_bodies and not self.body_began:
            self.body(b"")  # an empty one is no event
        content = self.scanner.close() if self.scanner is not None else None
        taken = self._taken(limits_of(self.side, pdu, content, now), now, started)
        history = self.runtime.history or self.runtime.store
        question = question_of(pdu, self.side)
        originals: tuple[Original, ...] = ()
        if question is not None and history is not None:
            originals = history.originals(
                question.message_id, direction=question.direction, peer=question.peer, recipient=question.recipient
            )
        held: tuple[Message, ...] = ()
        if pdu.is_answer and history is not None and pdu.get("transaction_id"):
            peer = self.side.name if self.side.peer else None
            held = history.held(pdu.get("transaction_id"), pdu.get("message_id"), peer)
        mail = Mail(
            side=self.side.name,
            client=self.client,
            mail_from=self.mail_from,
            recipients=tuple(self.recipients),
            headers=tuple(self.headers),
            pdu=pdu,
            queue_id=self.queue_id,
            host=self.runtime.host,
            token=self.runtime.new_token(),
            now=now,
            originals=originals,
            size=self.size,
            content=content,
            taken=taken,
            held=held,
        )
        self.judged = mail
        return decide(mail, self.router, self.side)

    def _commit(self, verdict: Verdict, started: float) -> Verdict:
        """Keep what the verdict records; what the store says of it may add to its reason."""
        store = self.runtime.store
        # Only a peer's messages can be duplicates: our own side may well send one again that came to nothing.
        peers = self.side is not None and self.side.peer is not None
        window = timedelta(seconds=self.router.config.duplicates) if peers else None
        splits = [part.record for part in verdict.splits]
        if store is None:
            if verdict.record is None or window is None or self.runtime.history is None:
                return verdict
            return self._settled(verdict, self.runtime.history.copies(verdict.record, window, splits))
        if verdict.arrival is not None:
            a = verdict.arrival
            answering = store.receive_answer(
                a.peer, a.type, a.transaction_id, a.message_id, a.status, a.text,
                self.runtime.clock(), self.queue_id, self.runtime.host, a.recipients,
            )  # fmt: skip
            if not self._committed(answering, started):
                return replace(verdict, reason=verdict.reason or "it answers nothing that we sent to this peer")
        if verdict.record is not None:
            try:
                found = self._committed(store.record(verdict.record, window, splits), started)
            except StoreError:
                # It may yet be written, and would be undecided: the next copy need not wait for that.
                for record in (verdict.record, *splits):
                    store.withdraw(record.token)
                raise
            return self._settled(verdict, found)
        return verdict

    def _committed(self, waiting: concurrent.futures.Future[T], started: float) -> T:
        """The result of a write, once it is on disk. Raises StoreError where that takes too long."""
        try:
            return waiting.result(timeout=max(0.1, self.runtime.eom_seconds - (time.monotonic() - started)))
        except (TimeoutError, concurrent.futures.CancelledError):
            raise StoreError(f"the store did not commit within {self.runtime.eom_seconds:.0f} s") from None

    def _settled(self, verdict: Verdict, found: Recording) -> Verdict:
        return verdict if self.judged is None else settled(verdict, self.judged, found)

    def _refused(self, where: str, reply: Reply, **fields: str) -> None:
        peer = self.side.name if self.side else "stranger"
        self.runtime.observer.refused(where, peer, reply)
        if not self.runtime.quiet:
            queue_id = self.queue_id or None
            log.info(
                logline(
                    queue_id=queue_id, client=self.client, certificate=self.subject or self.fingerprint,
                    login=self.login, peer=peer, refused=where, **fields, reply=reply,
                )
            )  # fmt: skip

    def _log(self, verdict: Verdict, seconds: float) -> None:
        peer = self.side.name if self.side else "stranger"
        self.runtime.observer.message(peer, verdict, seconds)
        if self.runtime.quiet:
            return
        pdu = verdict.pdu
        away = outside(self.side.peer, pdu, self.mail_from) if self.side and self.side.peer else ()
        sides = [verdict.record, *(part.record for part in verdict.splits)] if verdict.record else []
        to = ",".join(r.peer if r.direction is Direction.OUT else LOCAL for r in sides) or None
        level = logging.WARNING if verdict.action in (Action.TEMPFAIL, Action.REJECT) else logging.INFO
        log.log(
            level,
            logline(
                queue_id=self.queue_id or "-",
                client=self.client,
                peer=peer,
                to=to if verdict.splits or verdict.direction is Direction.OUT else None,
                direction=verdict.direction,
                type=(pdu.type or pdu.type_text) if pdu else None,
                transaction_id=pdu.get("transaction_id") if pdu else None,
                message_id=pdu.get("message_id") if pdu else None,
                report=(pdu.get("mm_status") or pdu.get("read_status")) if pdu and pdu.is_request else None,
                recipients=len(self.recipients),
                identity=f"outside:{','.join(away).replace(' ', '-')}" if away else None,
                verdict=verdict.action,
                status=verdict.status,
                reply=None if verdict.reply.positive else verdict.reply,
                answer=verdict.answers[0].status if verdict.answers else None,
                warnings=sum(p.severity == "warning" for p in pdu.problems) or None if pdu else None,
                limit=verdict.limit,
                reason=verdict.reason,
                ms=seconds * 1000,
            ),
        )

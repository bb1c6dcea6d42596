"""Bounces that come home: which message of ours one is about, what is noted of it, and whom it is told.

Postfix's own come to the sender that we gave: a token, or a number or our system with the token in ENVID. Those of an
MMSC or of a peer's mail system come to the same addresses later, without ENVID, which what went by sendmail lacks
too: then the returned ids tell, and only the side that got the message may return it. What became of a forward.REQ is
told its originator as `gateway/notices.py` says; bounces of answers, reports and notices are noted and counted, and
nothing is ever sent because of them.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from ..gateway.identity import Client
from ..gateway.logline import logline
from ..gateway.names import RESPONDER_DOMAIN, SIDE_HEADER, split_token, strip_via
from ..gateway.notices import Notice, disposition_of, notice_of, notice_token
from ..gateway.routing import LOCAL, Router, Side
from ..gateway.verdict import Destination
from ..protocol.address import Address, parse_address
from ..protocol.errors import ProtocolError
from ..protocol.transaction import Direction, Message, Transaction
from .attempts import Attempts
from .dsn import Recipient, Report, parse_plain, parse_report
from .lmtp import Envelope
from .mailpath import split_address

__all__ = ["ACTIONS", "Bounces", "Counters"]

log = logging.getLogger("mm4.responder")

ACTIONS = ("failed", "delayed", "delivered", "relayed", "expanded")  # RFC 3464 2.3.3
DETAIL_LENGTH = 1000
"""Characters of a diagnostic that are kept; a remote system may write any number."""
SAID_LENGTH = 300
"""Characters of one value in the log line that others wrote."""
SOME_FAILURE = "5.0.0"  # RFC 3463: some permanent failure
GIVEN_UP = "4.4.0"  # RFC 3463: some network or routing status, which did not pass in time

_ENVELOPE_ID = re.compile(r"([0-9a-f]{32})(\.answer)?\Z")
_STATUS = re.compile(r"\b[45]\.[0-9]{1,3}\.[0-9]{1,3}\b")
# The top line is our own Postfix's; "from" stands in it where a client brought the mail.
_TOP_LINE = re.compile(rb"^Received:.*(?:\r?\n[ \t].*)*", re.IGNORECASE | re.MULTILINE)
_SIDE = re.compile(rb"^%s: ([a-z0-9-]+) (\w+)\r?$" % SIDE_HEADER.encode(), re.MULTILINE)
_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
_CLIENT = re.compile(rb"from \S+ \(\S+ \[(?:IPv6:)?([0-9A-Fa-f.:]+)\]\)", re.IGNORECASE)


class Counters(Protocol):
    """What is counted, where somebody wants to know."""

    def bounce(self, action: str) -> None:
        """A report of one recipient came in; `action` is one of ACTIONS or `other`."""

    def notice(self, type: str, status: str) -> None:
        """An originator was told what became of his message; `status` is the MM status or request status."""


@dataclass(frozen=True, slots=True)
class _About:
    """What a bounce is about: a message, or the RES to it."""

    message: Message
    answer: bool = False


class Bounces:
    """Takes the bounces among the mail to local.domain. `now` is the clock (aware, UTC), `host` our name."""

    def __init__(
        self,
        attempts: Attempts,
        router: Router,
        *,
        now: Callable[[], datetime],
        host: str,
        counters: Counters | None = None,
    ) -> None:
        self._attempts = attempts
        self._router = router
        self._now = now
        self._host = host
        self._counters = counters

    def update(self, router: Router) -> None:
        """Take over what a reload may change."""
        self._router = router

    async def take(
        self, envelope: Envelope, recipient: str, data: bytes, said: dict[str, object], deadline: float
    ) -> bool:
        """Note what a bounce says of a message of ours, and tell its originator; False where the mail is none.

        `said` gets the keys of the log line. Raises StoreError or SubmissionError at the deadline: then Postfix
        brings it again.
        """
        local, domain = split_address(recipient)
        if envelope.mail_from or domain not in self._router.own_domains:
            return False
        report = await asyncio.to_thread(parse_report, data)
        report = report or await asyncio.to_thread(parse_plain, data)
        if report is None:
            return False
        about = await self._about(local, report, data, said, deadline)
        if about is None:
            ids = {"message_id": report.message_id, "transaction_id": report.transaction_id}
            said |= {name: text and _short([text]) for name, text in ids.items()}
            return False
        said |= {"token": about.message.token, "peer": about.message.peer}
        said["message_id"] = report.message_id and _short([report.message_id])
        groups = report.recipients or _plain_groups(about.message, report)
        for group in groups:
            await self._serve_split(group, said, deadline)
        counted = self._counting(about, [group for group in groups if _split_of(group) is None])
        for concerned, group in counted:
            if about.answer:
                await self._attempts.retried(partial(self._note_answer, about.message, group, said), deadline)
            else:
                async with self._attempts.alone(about.message.token):
                    await self._serve(about.message, concerned, group, said, deadline)
        if self._counters is not None:
            for group in groups:
                self._counters.bounce(group.action if group.action in ACTIONS else "other")
        if about.answer:
            said["why"] = "the answer bounced"
        said["recipients"] = _short(g.final_recipient or g.original_recipient for _, g in counted)
        said["action"] = _short(group.action or "-" for _, group in counted)
        said["status"] = _short(group.status or "-" for _, group in counted)
        if len(groups) > len(counted):
            said["groups"] = len(groups)
        return True

    # --- which message

    async def _about(
        self, local: str, report: Report, data: bytes, said: dict[str, object], deadline: float
    ) -> _About | None:
        if not report.recipients and report.text is None:
            return None
        for text in (local.lower(), (report.envelope_id or "").lower()):
            match = _ENVELOPE_ID.match(text)
            if match is None:
                continue
            token = match[1]
            message = await self._attempts.retried(partial(self._attempts.message, token), deadline)
            if message is not None:
                return _About(message, answer=match[2] is not None)
            said |= {"token": token, "why": "unknown token"}
            return None
        return await self._returned(report, data, deadline)

    async def _returned(self, report: Report, data: bytes, deadline: float) -> _About | None:
        """The message whose copy came back. One that went to another side than the one that returns it is not told
        of: ids are no secret, and nobody may say of others' mail that it did not arrive.
        """
        transaction_id = report.transaction_id
        if transaction_id is None or report.type is None:
            return None
        brought, side = self._whose(data)
        if brought and side is None:
            return None
        answer = report.type.endswith(".RES")
        inward = side is not None and side.name == LOCAL
        direction = Direction.IN if answer or inward else Direction.OUT
        found = await self._attempts.retried(
            lambda: self._attempts.asked(
                "the store", self._attempts.store.returned, transaction_id, report.message_id, direction
            ),
            deadline,
        )
        for message in found:
            if side is not None and side.name not in (LOCAL, message.peer):
                continue
            if message.type == report.type:
                return _About(message)
            if answer and message.answer is not None and message.answer.type == report.type:
                return _About(message, answer=True)
        return None

    def _whose(self, data: bytes) -> tuple[bool, Side | None]:
        """Whether a client brought this bounce, and which side's that was.

        The milter writes it beside the queue id. What did not pass the milter is known by the client's address, and so
        is which of our identities' client ours is.
        """
        top = _TOP_LINE.search(data)
        client = _CLIENT.search(top[0]) if top else None
        if top is None or client is None:
            return False, None
        # The milter's line is the last of the header; whoever guesses the queue id may write such lines elsewhere.
        lines = _SIDE.findall(_END_OF_HEADER.split(data, maxsplit=1)[0] + b"\n")
        for name, queue_id in lines[-1:]:
            if name != LOCAL.encode() and re.search(rb"\bid " + queue_id + rb"\b", top[0]):
                return True, self._router.named(name.decode("ascii"))
        return True, self._router.side(Client(client[1].decode("ascii")))

    # --- what is noted, and who is told

    async def _serve_split(self, group: Recipient, said: dict[str, object], deadline: float) -> None:
        """Where Postfix gave up to bring us a message for a further side, nobody there has it."""
        token = _split_of(group)
        message = await self._attempts.retried(partial(self._attempts.message, token), deadline) if token else None
        if message is None or message.split is None:
            return
        async with self._attempts.alone(message.token):
            for recipient in dict.fromkeys(transaction.recipient for transaction in message.transactions):
                await self._serve(message, recipient, group, said, deadline)

    async def _serve(
        self, message: Message, recipient: str, group: Recipient, said: dict[str, object], deadline: float
    ) -> None:
        at = self._now()
        await self._attempts.retried(partial(self._note, message, group, recipient, at, _queue_id(said)), deadline)
        transaction = next((t for t in message.transactions if t.recipient == recipient), None)
        if transaction is None:
            return
        status = group.status or (SOME_FAILURE if group.action == "failed" else "")
        await self._told(message, transaction, group.action, status, group.diagnostic or status, said, deadline)

    async def gave_up(self, message: Message, transaction: Transaction, reason: str) -> None:
        """Tell an originator that nothing more is done for his message, once. Raises StoreError, SubmissionError."""
        said: dict[str, object] = {"token": message.token, "peer": message.peer, "why": reason}
        async with self._attempts.alone(message.token):
            await self._told(message, transaction, "failed", GIVEN_UP, reason, said, time.monotonic())
        if "told" in said:
            log.info(logline(**said))

    async def _told(
        self,
        message: Message,
        transaction: Transaction,
        action: str,
        status: str,
        detail: str,
        said: dict[str, object],
        deadline: float,
    ) -> None:
        at = self._now()
        found = disposition_of(message, transaction, action, status, self._router, at)
        if found is None:
            return
        token = notice_token(message, transaction, found)
        earlier = await self._attempts.retried(partial(self._attempts.message, token), deadline)
        if earlier is not None and earlier.accepted_at is not None:
            return
        try:
            # One that was recorded and not submitted is the same one, to the byte.
            when = earlier.recorded_at if earlier is not None else at
            notice = notice_of(message, transaction, found, detail, self._router, when, self._host)
        except ProtocolError as error:
            log.error(logline(token=message.token, why="the originator cannot be told", error=error))
            return
        if notice is not None:
            await self._tell(notice, known=earlier is not None, said=said, deadline=deadline)

    async def _tell(self, notice: Notice, *, known: bool, said: dict[str, object], deadline: float) -> None:
        """Record a notice, submit it, and note that: at least once, twice only after a kill in between."""
        attempts, record, mail = self._attempts, notice.record, notice.mail
        if not known:
            await attempts.retried(lambda: attempts.kept(attempts.store.record(record)), deadline)
        submitted = await attempts.retried(
            lambda: attempts.submit(mail.mail_from, mail.rcpt_to, mail.message, record.token), deadline
        )
        at = self._now()
        await attempts.retried(
            lambda: attempts.kept(attempts.store.accepted(record.token, at, submitted or None)), deadline
        )
        if record.copy_of is not None:
            await attempts.retried(
                lambda: attempts.kept(attempts.store.answered(record.token, at, submitted or None)), deadline
            )
        if self._counters is not None:
            self._counters.notice(mail.type, mail.status)
        said |= {"told": mail.type, "report": mail.status, "submitted": submitted}

    async def _note(
        self, message: Message, group: Recipient, recipient: str, at: datetime, queue_id: str | None
    ) -> None:
        detail = (group.diagnostic or f"{group.action} {group.status}")[:DETAIL_LENGTH]
        store = self._attempts.store
        if group.action == "failed":
            status = group.status or SOME_FAILURE
            await self._attempts.kept(store.bounced(message.token, recipient, status, detail, at, queue_id))
        else:
            detail = " ".join(text for text in (recipient, group.status, detail) if text)
            what = group.action if group.action in ACTIONS else "reported"
            await self._attempts.kept(store.event(message.token, at, what, queue_id, detail))

    async def _note_answer(self, message: Message, group: Recipient, said: dict[str, object]) -> None:
        """The RES did not arrive: an event, for the message itself did."""
        answer = message.answer.type if message.answer else "the answer"
        words = (answer, "to", group.final_recipient or group.original_recipient, group.status, group.diagnostic)
        detail = " ".join(text for text in words if text)[:DETAIL_LENGTH]
        what = "answer bounced" if group.action == "failed" else f"answer {group.action or 'reported'}"
        store = self._attempts.store
        await self._attempts.kept(store.event(message.token, self._now(), what, _queue_id(said), detail))

    def _counting(self, about: _About, groups: Iterable[Recipient]) -> list[tuple[str, Recipient]]:
        """The groups that count, with the recorded recipient of each: one a recipient, a failure before all else.

        A report may name a recipient any number of times, and each would be a write. One group speaks of nobody that
        is recorded. Of a RES there is one recipient.
        """
        recipient_of = self._recipients(about.message)
        found: dict[str | None, tuple[str, Recipient]] = {}
        for group in groups:
            recipient, known = recipient_of(group)
            key = "" if about.answer else recipient if known else None
            if key not in found or (group.action == "failed" and found[key][1].action != "failed"):
                found[key] = recipient, group
        return list(found.values())

    def _given(self, address: Address, message: Message) -> Destination | None:
        """How a recipient was given to the next hop: to the recorded peer's, or to that of our own side."""
        if message.direction is Direction.OUT and message.peer in self._router.config.peers:
            return self._router.outward(address, message.peer, "recorded")
        return self._router.served(address)

    def _recipients(self, message: Message) -> Callable[[Recipient], tuple[str, bool]]:
        """Tells which recorded recipient a group speaks of, and whether it is one.

        It names the address that we gave to the next hop: the one that the configuration gives a number, or one of
        the same number. Where nothing fits, the only recipient must be meant; of several none is, and the address
        stays as it stands.
        """
        recipients = list(dict.fromkeys(transaction.recipient for transaction in message.transactions))
        by_number = {recipient.lstrip("+"): recipient for recipient in reversed(recipients)}
        given = {r: self._given(parse_address(r), message) for r in reversed(recipients)}
        by_address = {strip_via(way.becomes): recipient for recipient, way in given.items() if way and way.becomes}

        def recipient_of(group: Recipient) -> tuple[str, bool]:
            addresses = [text for text in (group.original_recipient, group.final_recipient) if text]
            for address in addresses:
                recipient = by_number.get(parse_address(address).key.lstrip("+")) or by_address.get(address)
                if recipient is not None:
                    return recipient, True
            if len(recipients) == 1:
                return recipients[0], True
            return parse_address(addresses[0]).key if addresses else "", False

        return recipient_of


def _short(texts: Iterable[str | None]) -> str:
    """What others wrote, for a log line."""
    text = ",".join(f"{text}" for text in texts)
    return text if len(text) <= SAID_LENGTH else f"{text[:SAID_LENGTH]}..."


def _plain_groups(message: Message, report: Report) -> tuple[Recipient, ...]:
    """The failures that a plain bounce tells of: the recipients whose numbers it names, or the only one."""
    text = (report.text or "")[:DETAIL_LENGTH]
    status = _STATUS.search(text)
    recipients = list(dict.fromkeys(transaction.recipient for transaction in message.transactions))
    named = [r for r in recipients if len(recipients) == 1 or r.lstrip("+") in (report.text or "")]
    return tuple(Recipient("", r, "failed", status[0] if status else "", text) for r in named)


def _split_of(group: Recipient) -> str | None:
    """The token of a further side's part where a report is about that; None where it is about a recipient."""
    local, domain = split_address(group.final_recipient or group.original_recipient or "")
    return split_token(local) if domain == RESPONDER_DOMAIN else None


def _queue_id(said: dict[str, object]) -> str | None:
    return None if said["queue_id"] is None else str(said["queue_id"])

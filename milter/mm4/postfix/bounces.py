"""Bounces that come home: which message of ours one is about, and what is noted of it.

Postfix's own come to the sender that we gave (a token, or an originator's number with the token in ENVID), those of
an MMSC or of a peer's mail system to the same addresses later. Nothing is ever answered to a bounce.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Protocol

from ..gateway.names import TOKEN
from ..gateway.routing import Router
from ..protocol.address import parse_address
from ..protocol.transaction import Message
from .attempts import Attempts
from .dsn import Recipient, Report, parse_report
from .lmtp import Envelope, split_address

__all__ = ["ACTIONS", "Bounces", "Counters"]

ACTIONS = ("failed", "delayed", "delivered", "relayed", "expanded")  # RFC 3464 2.3.3
DETAIL_LENGTH = 1000
"""Characters of a diagnostic that are kept; a remote system may write any number."""


class Counters(Protocol):
    """What is counted, where somebody wants to know."""

    def bounce(self, action: str) -> None:
        """A report of one recipient came in; `action` is one of ACTIONS or `other`."""


class Bounces:
    """Takes the bounces among the mail to local.domain. `now` is the clock (aware, UTC)."""

    def __init__(
        self, attempts: Attempts, router: Router, *, now: Callable[[], datetime], counters: Counters | None = None
    ) -> None:
        self._attempts = attempts
        self._router = router
        self._now = now
        self._counters = counters

    def update(self, router: Router) -> None:
        """Take over what a reload may change."""
        self._router = router

    async def take(
        self, envelope: Envelope, recipient: str, data: bytes, said: dict[str, object], deadline: float
    ) -> bool:
        """Note what a bounce says of a message of ours; False where the mail is none, or says nothing.

        `said` gets the keys of the log line. Raises StoreError at the deadline: then Postfix brings it again.
        """
        local, domain = split_address(recipient)
        if envelope.mail_from or domain not in self._router.own_domains:
            return False
        report = await asyncio.to_thread(parse_report, data)
        if report is None:
            return False
        if await self._noted(local, report, said, deadline):
            return True
        said |= {"message_id": report.message_id, "transaction_id": report.transaction_id}
        return False

    async def _noted(self, local: str, report: Report, said: dict[str, object], deadline: float) -> bool:
        candidates = (local.lower(), (report.envelope_id or "").lower())
        token = next((text for text in candidates if TOKEN.match(text)), None)
        if token is None or not report.recipients:
            return False
        message = await self._attempts.retried(lambda: self._attempts.message(token), deadline)
        if message is None:
            said |= {"token": token, "why": "unknown token"}
            return False
        said |= {"token": token, "peer": message.peer, "message_id": report.message_id}
        queue_id = None if said["queue_id"] is None else str(said["queue_id"])
        at = self._now()
        for group in report.recipients:
            await self._attempts.retried(partial(self._note, message, group, at, queue_id), deadline)
            if self._counters is not None:
                self._counters.bounce(group.action if group.action in ACTIONS else "other")
        said["recipients"] = ",".join(f"{g.final_recipient or g.original_recipient}" for g in report.recipients)
        said["action"] = ",".join(group.action or "-" for group in report.recipients)
        said["status"] = ",".join(group.status or "-" for group in report.recipients)
        return True

    async def _note(self, message: Message, group: Recipient, at: datetime, queue_id: str | None) -> None:
        recipient = _transaction_of(message, group)
        detail = (group.diagnostic or f"{group.action} {group.status}")[:DETAIL_LENGTH]
        store = self._attempts.store
        if group.action == "failed":
            status = group.status or "5.0.0"  # RFC 3463: some permanent failure
            await self._attempts.kept(store.bounced(message.token, recipient, status, detail, at, queue_id))
        else:
            detail = " ".join(text for text in (recipient, group.status, detail) if text)
            what = group.action if group.action in ACTIONS else "reported"
            await self._attempts.kept(store.event(message.token, at, what, queue_id, detail))


def _transaction_of(message: Message, group: Recipient) -> str:
    """Return the recorded recipient that a report speaks of.

    It names the address that we gave to the next hop, so numbers are compared. Where nothing fits, the only
    recipient must be meant; of several none is, and the address goes to the store as it stands.
    """
    recipients = [transaction.recipient for transaction in message.transactions]
    addresses = [text for text in (group.original_recipient, group.final_recipient) if text]
    for address in addresses:
        key = parse_address(address).key
        for recipient in recipients:
            if recipient == key or recipient.lstrip("+") == key.lstrip("+"):
                return recipient
    if len(set(recipients)) == 1:
        return recipients[0]
    return parse_address(addresses[0]).key if addresses else ""

"""What is past its X-Mms-Expiry and still in Postfix's queue is returned to its sender, as Postfix itself would do it.

`postsuper -e` makes the bounce that Postfix makes of an old message; it comes home, and the responder reports it.
The queue is asked first and then the store, so the cost is that of the queue. A message whose token still waits for
the responder is left: its RES would be lost.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..gateway.names import RESPONDER_DOMAIN, strip_via
from ..protocol.address import parse_address
from ..protocol.errors import PostfixError
from ..store.expiry import Expired
from ..store.store import Store
from .instance import Instance

__all__ = ["Fate", "Returned", "expire"]

_EARLY = timedelta(minutes=1)
"""By how much a mail may say that it came later than it was recorded: the clock may have been set between."""


class Fate(enum.StrEnum):
    """What became of an expired message."""

    EXPIRED = "expired"
    """Postfix returns it to its sender now."""
    HELD = "held"
    """Somebody holds it: it is returned when it is released."""
    ANSWER_DUE = "answer due"
    """Left as it is: its token waits for the responder."""


@dataclass(frozen=True, slots=True)
class Returned:
    """One message of the queue. `recipients` are those that it still waits for, as the peer would see them."""

    queue_id: str
    token: str
    peer: str
    recipients: tuple[str, ...]
    expires_at: datetime
    fate: Fate

    def as_json(self) -> dict[str, Any]:
        """As `mm4 expire --json` prints it."""
        return {
            "queue_id": self.queue_id,
            "token": self.token,
            "peer": self.peer,
            "recipients": list(self.recipients),
            "expires_at": self.expires_at.isoformat(),
            "fate": self.fate.value,
        }


def expire(instance: Instance, store: Store, host: str, now: datetime, *, dry_run: bool = False) -> list[Returned]:
    """Return what has expired; with `dry_run` only say what that would be. What was returned before is left out.

    Raises PostfixError, for want of root too, and StoreError.
    """
    if not dry_run and os.geteuid() != 0:
        raise PostfixError(
            "mm4 expire needs root, as Postfix's postsuper does: run it from a timer unit of root's, or with sudo; "
            "--dry-run needs none"
        )
    queue = {entry["queue_id"]: entry for entry in instance.queue() if not entry.get("forced_expire")}
    found = [
        _fate(queue[row.queue_id], row)
        for row in store.expired(list(queue), host, now)
        if _is_of(queue[row.queue_id], row)
    ]
    returned = [one for one in found if one.fate is not Fate.ANSWER_DUE]
    if dry_run or not returned:
        return found
    instance.expire(one.queue_id for one in returned)
    notes = [
        store.event(one.token, now, "expired", one.queue_id, f"X-Mms-Expiry {one.expires_at:%Y-%m-%d %H:%M:%S} UTC")
        for one in returned
    ]
    for note in notes:
        note.result()
    for one in returned:
        if one.fate is Fate.EXPIRED and queue[one.queue_id]["queue_name"] == "deferred":
            instance.deliver(one.queue_id)
    return found


def _is_of(entry: dict[str, Any], row: Expired) -> bool:
    """Whether the mail in the queue is this message, and not another one that got the same queue id later."""
    if row.token in entry["sender"] or any(row.token in r["address"] for r in entry["recipients"]):
        return True
    early = datetime.fromtimestamp(entry["arrival_time"], UTC) <= row.since + _EARLY
    numbers = {parse_address(strip_via(recipient["address"])).key for recipient in entry["recipients"]}
    return early and not numbers.isdisjoint(row.recipients)


def _fate(entry: dict[str, Any], row: Expired) -> Returned:
    addresses = [recipient["address"] for recipient in entry["recipients"]]
    fate = Fate.HELD if entry["queue_name"] == "hold" else Fate.EXPIRED
    if any(address.lower().endswith(f"@{RESPONDER_DOMAIN}") for address in addresses):
        fate = Fate.ANSWER_DUE
    recipients = tuple(strip_via(address) for address in addresses)
    return Returned(row.queue_id, row.token, row.peer, recipients, row.expires_at, fate)

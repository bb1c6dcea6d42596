"""What became of a delivery, by mail's words and by MM4's: RFC 3464 action and status to MM status and request status.

RFC 4356 2.1.4.2 goes from DSN to MMS by the action alone (delivered is Retrieved, relayed is Forwarded, failed is
Unreachable, delayed is ignored). Two values are others here: Unreachable stands in no early release and many peers do
not know it, so a failure is told apart by its status (RFC 3463); and Forwarded says to most that the recipient sent
it on, so what a next hop took is Indeterminate, which RFC 4356 maps to relayed the other way round.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .outcomes import DENIED, NETWORK, NO_SENDER, NOT_ACCEPTED, UNSPECIFIED

__all__ = ["ROWS", "Disposition", "disposition"]


@dataclass(frozen=True, slots=True)
class Disposition:
    """One row: what `action` with a status that `pattern` matches as a whole means.

    `mm_status` is the value of X-Mms-MM-Status-Code, `request_status` that of a RES that says so; None: a RES says no
    such thing.
    """

    action: str
    pattern: str
    mm_status: str
    request_status: str | None
    source: str

    @property
    def failed(self) -> bool:
        """Whether the message did not arrive."""
        return self.action == "failed"


# The first row that fits wins.
_ROWS = (
    ("delivered", ".*", "Retrieved", None, "RFC 4356 2.1.4.2: delivered"),
    ("relayed", ".*", "Indeterminate", None, "RFC 4356 2.1.4.2: what Indeterminate becomes; local.relayed_status"),
    ("expanded", ".*", "Indeterminate", None, "RFC 3464 2.3.3: sent on to several, as if relayed"),
    ("failed", r"[45]\.4\.7", "Expired", NETWORK, "RFC 3463 X.4.7: delivery time expired"),
    ("failed", r"4\..*", "Indeterminate", NETWORK, "RFC 3463 4.X.X: for a time only, until Postfix gave up"),
    ("failed", r"5\.1\.[78]", "Rejected", NO_SENDER, "RFC 3463 X.1.7, X.1.8: the sender's address"),
    ("failed", r"5\.1\..*", "Rejected", UNSPECIFIED, "RFC 3463 X.1.X: the address; no MM4 status names a recipient"),
    ("failed", r"5\.2\.3|5\.3\.4", "Rejected", NOT_ACCEPTED, "RFC 3463 X.2.3, X.3.4: too large"),
    ("failed", r"5\.2\.1", "Rejected", DENIED, "RFC 3463 X.2.1: mailbox disabled"),
    ("failed", r"5\.2\..*", "Rejected", UNSPECIFIED, "RFC 3463 X.2.X: the mailbox"),
    ("failed", r"5\.4\..*", "Indeterminate", NETWORK, "RFC 3463 X.4.X: network and routing; nobody refused it"),
    ("failed", r"5\.6\..*", "Rejected", NOT_ACCEPTED, "RFC 3463 X.6.X: content or media"),
    ("failed", r"5\.7\..*", "Rejected", DENIED, "RFC 3463 X.7.X: security or policy"),
    ("failed", ".*", "Rejected", UNSPECIFIED, "RFC 3463 5.X.X, or no status at all: a permanent failure"),
)
ROWS: tuple[Disposition, ...] = tuple(Disposition(*row) for row in _ROWS)


def disposition(
    action: str, status: str, *, relayed: str = "Indeterminate", mailbox: bool = False, late: bool = False
) -> Disposition | None:
    """What a report of one recipient means; None where it is no news: `delayed`, or an action that nobody knows.

    `relayed` is the MM status of what the next hop took, `mailbox` says that this hop was the mailbox itself, `late`
    that the message's own expiry (X-Mms-Expiry) is over: then what mail systems gave up is Expired.
    """
    found = next((row for row in ROWS if row.action == action and re.fullmatch(row.pattern, status)), None)
    if found is None:
        return None
    if found.action in ("relayed", "expanded"):
        return replace(found, mm_status="Retrieved" if mailbox else relayed)
    if late and found.failed and found.mm_status == "Indeterminate":
        return replace(found, mm_status="Expired")
    return found

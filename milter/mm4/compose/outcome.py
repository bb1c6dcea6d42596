"""What became of a message, recipient by recipient: read in the gateway's store, until all is known or time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..protocol.address import parse_address
from ..protocol.errors import StoreError
from ..protocol.transaction import State

if TYPE_CHECKING:
    from ..store.store import Store

__all__ = ["Outcome", "outcomes", "wait"]

_FORWARD = "MM4_forward.REQ"
_DONE = frozenset({State.ACCEPTED, State.ENDED, State.SUPPRESSED})
"""Where nothing more is awaited, and nothing went wrong: ACCEPTED is a peer that gives no acks, or our own side."""
_FAILED = frozenset({State.REFUSED, State.BOUNCED})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks into the store."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of one recipient: `state` is that of `mm4.protocol.transaction`, `status` what a RES said.

    `peer` is where it went; all three are None where the store knows nothing (yet).
    """

    recipient: str
    peer: str | None = None
    state: str | None = None
    status: str | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more is awaited: the RES is here, or none is due."""
        return self.state == State.ANSWERED or self.state in _DONE or self.state in _FAILED

    @property
    def ok(self) -> bool:
        """Whether it is known to be well: a RES that says Ok, or nothing more awaited and no error."""
        return self.state in _DONE or (self.state == State.ANSWERED and self.status == "Ok")


def outcomes(
    store: Store, identifier: str, recipients: Iterable[str], region: str | None = None
) -> tuple[Outcome, ...]:
    """One look: what the store knows of each recipient of the message with this message id, in the order given.

    A report is found by its transaction id; its recipient is the originator of the message. Raises StoreError.
    """
    rows = [
        row
        for row in store.trace(identifier)
        if row["transaction_id"] == identifier or (row["message_id"] == identifier and row["type"] == _FORWARD)
    ]
    # In time order: of a recipient's rows the last one holds.
    by_key = {parse_address(row["recipient"]).key: row for row in rows}
    found = []
    for recipient in recipients:
        row = by_key.get(parse_address(recipient, region).key)
        found.append(Outcome(recipient, row["peer"], row["state"], row["status"]) if row else Outcome(recipient))
    return tuple(found)


def wait(
    look: Callable[[], tuple[Outcome, ...]],
    seconds: float,
    progress: Callable[[tuple[Outcome, ...]], None] | None = None,
) -> tuple[Outcome, ...]:
    """Look until every outcome is final, or so many seconds are over; the last look, which `progress` gets each time.

    The pauses grow to 2 s, so that waiting costs the gateway nothing. Raises StoreError where the last look fails.
    """
    end = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        left = end - time.monotonic()
        try:
            found = look()
        except StoreError:
            # Busy for a moment: the message is on its way all the same.
            if left <= 0:
                raise
        else:
            if progress is not None:
                progress(found)
            if left <= 0 or all(outcome.final for outcome in found):
                return found
        time.sleep(max(0.0, min(pause, left)))
        pause = min(pause * 1.5, _LONGEST_PAUSE)

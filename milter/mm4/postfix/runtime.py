"""What the sessions of one process share, and what they ask of the store and of the counters.

Everything from outside comes in here: the clock, the store, the look-ups. So `mm4 explain` and the tests give a session
others.
"""

from __future__ import annotations

import concurrent.futures
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from ..gateway.matching import Lookups, NoLookups
from ..gateway.routing import Router
from ..gateway.verdict import Verdict
from ..protocol.errors import Reply
from ..protocol.limits import Limit, Standing, Taken
from ..protocol.transaction import Direction, Message, Original, Recording

__all__ = ["EOM_SECONDS", "History", "Ledger", "Observer", "Runtime"]

EOM_SECONDS = 20.0
"""Longest time from the end of a message to its verdict; Postfix waits three times as long (content_timeout)."""


class History(Protocol):
    """What a session asks about earlier messages; every method raises StoreError."""

    def originals(
        self, message_id: str, *, direction: Direction | None, peer: str | None, recipient: str | None
    ) -> tuple[Original, ...]:
        """The forward.REQs that a report may be about, newest first."""

    def copies(self, message: Message, window: timedelta, splits: Sequence[Message] = ()) -> Recording:
        """What of a message, and of its parts for further sides, came before."""

    def held(self, transaction_id: str, message_id: str | None, peer: str | None) -> tuple[Message, ...]:
        """The messages whose own RES waits for the one to this transaction, newest first."""

    def standings(self, keys: Collection[str]) -> Mapping[str, Standing]:
        """How far limits are used, by key."""


class Ledger(History, Protocol):
    """What a session asks of the store that it writes."""

    def record(
        self, message: Message, window: timedelta | None, splits: Sequence[Message] = ()
    ) -> concurrent.futures.Future[Recording]:
        """Keep a message, its transactions and its parts for further sides, and say what of it came before."""

    def take(self, limits: Sequence[Limit], now: datetime) -> concurrent.futures.Future[Taken]:
        """Count one message for all of the limits, or for none where it is over one of them."""

    def withdraw(self, token: str) -> concurrent.futures.Future[None]:
        """Forget a message that was refused after all, if it was kept."""

    def receive_answer(
        self,
        peer: str,
        type: str,
        transaction_id: str,
        message_id: str | None,
        status: str,
        text: str | None,
        at: datetime,
        queue_id: str | None,
        host: str,
        recipients: tuple[str, ...],
    ) -> concurrent.futures.Future[int]:
        """Correlate a RES that came in."""


class Observer(Protocol):
    """What counts messages."""

    def message(self, peer: str, verdict: Verdict, seconds: float) -> None:
        """One message has its verdict."""

    def refused(self, where: str, peer: str, reply: Reply) -> None:
        """A client was refused at MAIL or RCPT."""


class _Silent:
    def message(self, peer: str, verdict: Verdict, seconds: float) -> None: ...

    def refused(self, where: str, peer: str, reply: Reply) -> None: ...


@dataclass
class Runtime:
    """What the sessions of one process share. `router` is replaced whole when the configuration changes."""

    router: Router
    store: Ledger | None = None
    observer: Observer = field(default_factory=_Silent)
    host: str = field(default_factory=socket.gethostname)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    new_token: Callable[[], str] = lambda: secrets.token_hex(16)
    eom_seconds: float = EOM_SECONDS
    draining: bool = False
    quiet: bool = False
    """No log lines: a dry run."""
    history: History | None = None
    """Where earlier messages are looked up; None: in `store`."""
    lookups: Lookups = field(default_factory=NoLookups)
    """Who answers what routes ask."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.connections = 0
        self.messages = 0
        """Messages between an accepted MAIL and their verdict."""

    def count(self, *, connections: int = 0, messages: int = 0) -> None:
        """Note that a connection or message began (+1) or ended (-1)."""
        with self._lock:
            self.connections += connections
            self.messages += messages

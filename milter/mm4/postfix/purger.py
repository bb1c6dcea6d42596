"""What is older than `retention` leaves the store, a little at a time and beside everything else.

The step is one of the timers' loops. It takes one batch, has SQLite's log moved into the file, and waits for several
times as long as that took: so most of the time the store is the others'. Where more than a day's messages are too old
it takes half of the time, until they are gone. On a restart it begins anew with the oldest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any, Protocol

from ..gateway.logline import logline
from ..store.retention import WALKS, Ages, Found, Removed
from .patience import within

__all__ = ["Purger", "Store"]

log = logging.getLogger("mm4.timers")

PAUSE = 60.0
"""Seconds between the end of a pass and the next one."""
SHARE, SHARE_BEHIND = 4, 1
"""Pauses are so many times as long as the batch before them took; the same while it is behind."""
BEHIND = timedelta(days=1)
"""What is older than it may be by more than this makes it hurry: more comes in than so many pauses let go."""
TURN_SECONDS = 1.0
"""How long it stays at it then, before the loop has its say."""
SAY_SECONDS = 3600.0
LOG_PAGES = 16_384
"""Of SQLite's log (64 MB). Where it has grown so far somebody reads for long, a backup for one: nothing is added."""
STORE_SECONDS = 15.0


class Store(Protocol):
    """What is needed of the store. All but `purge` block and raise StoreError; the future fails with it."""

    def outdated(self, walk: str, ages: Ages, after: tuple[Any, ...] | None) -> Found:
        """Read what may go."""

    def purge(self, walk: str, keys: Sequence[Any], ages: Ages) -> Future[Removed]:
        """Remove a batch."""

    def checkpoint(self) -> int:
        """Empty the log; gives the pages that it keeps."""


class Purger:
    """Where it stands in a pass over the store. `retention` may change at any time."""

    def __init__(self, store: Store, now: Callable[[], datetime], retention: timedelta, pause: float = PAUSE) -> None:
        self._store = store
        self._now = now
        self.retention = retention
        self._pause = pause
        self._removed: Counter[str] = Counter()
        self._log_pages = 0
        self._said = -SAY_SECONDS
        self._begin()

    def _begin(self) -> None:
        self._behind = False
        self._walks = list(WALKS)
        self._after: tuple[Any, ...] | None = None
        self._keys: tuple[Any, ...] = ()

    async def purge(self) -> float:
        """A look, and a batch where it found something; several while behind. Gives the seconds to wait before more."""
        begun = time.monotonic()
        wait = await self._batch()
        while self._behind and time.monotonic() - begun < TURN_SECONDS:
            await asyncio.sleep(wait)
            wait = await self._batch()
        return wait

    async def _batch(self) -> float:
        begun = time.monotonic()
        ages = Ages.of(self._now(), self.retention)
        if not self._keys:
            if not self._walks:
                self._end()
                return self._pause
            looking = asyncio.to_thread(self._store.outdated, self._walks[0], ages, self._after)
            found = await within(STORE_SECONDS, looking)
            self._keys, self._after = found.keys, found.after
            self._compare(ages)
        if self._keys:
            if self._log_pages > LOG_PAGES:
                self._log_pages = await within(STORE_SECONDS, asyncio.to_thread(self._store.checkpoint))
            if self._log_pages > LOG_PAGES:
                self._behind = False  # haste is of no use
                return self._pause
            purging = self._store.purge(self._walks[0], self._keys, ages)
            removed = await within(STORE_SECONDS, asyncio.wrap_future(purging))
            if removed.elsewhere:
                self._end()
                return self._pause
            self._removed.update(removed.rows)
            self._keys = self._keys[removed.done :]
            self._log_pages = await within(STORE_SECONDS, asyncio.to_thread(self._store.checkpoint))
        if not self._keys and self._after is None:
            del self._walks[0]
        return (SHARE_BEHIND if self._behind else SHARE) * (time.monotonic() - begun)

    def _compare(self, ages: Ages) -> None:
        """Whether messages that may go are far too old; a line in the log then, once an hour."""
        reached = self._after[0] if self._walks[0] == "messages" and self._keys and self._after else ages.settled
        self._behind = reached < ages.settled - BEHIND
        if self._behind and time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            log.warning(logline(retention="behind", at=f"{reached:%Y-%m-%d}", kept_since=f"{ages.settled:%Y-%m-%d}"))

    def _end(self) -> None:
        """One line a pass that removed something."""
        if self._removed:
            log.info(logline(retention="removed", **{table: self._removed[table] for table in sorted(self._removed)}))
        self._removed.clear()
        self._begin()

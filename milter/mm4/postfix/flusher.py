"""What Postfix has deferred for us is tried again as soon as it can be taken: by itself it would wait for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from ..gateway.logline import logline

__all__ = ["FLUSH_SECONDS", "Flush", "Flusher"]

log = logging.getLogger("mm4.responder")

FLUSH_SECONDS = 3.0
FLUSH_LONGEST = 60.0
"""Between a failure and the flush that follows it; a flush that fails is repeated with doubled pauses."""

Flush = Callable[[str], Awaitable[None]]
"""Asks Postfix to deliver at once what it has deferred for a domain; raises Mm4Error or OSError."""


class Flusher:
    """Has domains flushed by `flush`, `seconds` after that was asked for. `start` and `stop` belong to one event loop;
    without them nothing is flushed.
    """

    def __init__(self, flush: Flush, seconds: float = FLUSH_SECONDS) -> None:
        self._flush = flush
        self._seconds = seconds
        self._due: dict[str, float] = {}
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to flush what is asked for."""
        self._task = asyncio.get_running_loop().create_task(self._for_ever())

    async def stop(self) -> None:
        """Flush nothing any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def ask(self, domains: Iterable[str], *, at_once: bool = False) -> None:
        """Have the domains flushed after the pause, or earlier where that is planned already."""
        self._plan(domains, 0 if at_once else self._seconds)

    def _plan(self, domains: Iterable[str], seconds: float) -> None:
        due = time.monotonic() + seconds
        for domain in domains:
            self._due[domain] = min(due, self._due.get(domain, due))
        self._asked.set()

    async def _for_ever(self) -> None:
        """A flush that fails is repeated, at last once a minute (Postfix may be down); only the first of a row of
        failures is an error in the log.
        """
        failures: dict[str, int] = {}
        while True:
            self._asked.clear()
            wait = min(self._due.values()) - time.monotonic() if self._due else None
            if wait is None or wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._asked.wait()
            now = time.monotonic()
            due = [domain for domain, at in self._due.items() if at <= now]
            for domain in due:
                del self._due[domain]
            results = await asyncio.gather(*map(self._flush, due), return_exceptions=True)
            for domain, result in zip(due, results, strict=True):
                if not isinstance(result, BaseException):
                    failures.pop(domain, None)
                    continue
                count = failures[domain] = failures.get(domain, 0) + 1
                level = logging.ERROR if count == 1 else logging.DEBUG
                log.log(level, logline(why="cannot flush the queue", domain=domain, error=result))
                self._plan([domain], min(self._seconds * 2 ** min(count - 1, 10), FLUSH_LONGEST))

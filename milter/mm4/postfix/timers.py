"""The timers of the responder's process: what is overdue is noted, sent again, or given up.

Five loops ask the store for little at a time, so that tokens never wait for them: one marks what is overdue, one
sends copies again, one drops copies that nobody needs, one sees to it that a clock that was set back keeps nothing
waiting, one removes what is too old (`purger`). What is due stands in the store by the wall clock, so it outlives any
restart; the loops sleep by the monotonic clock and never spin. Any number of processes may run them. A store, disk or
Postfix that fails is logged once, and tried again until it works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from ..gateway.config import Config
from ..gateway.logline import logline
from ..gateway.routing import Router
from ..protocol.address import parse_address
from ..protocol.errors import Mm4Error, PostfixError, SubmissionError
from ..protocol.retry import Retry
from ..protocol.transaction import Message, State, Transaction
from ..store.clock import Ahead
from ..store.timers import Hindrance, Late
from .patience import within
from .purger import Purger
from .spool import Spool

__all__ = ["Counters", "Look", "Store", "Submitter", "Timers", "Told", "noted_only"]

log = logging.getLogger("mm4.timers")

T = TypeVar("T")

BATCH = 100
"""Transactions that one write marks: about 10 ms of the store, in which no other write waits longer."""
COPIES = 8
"""Copies that are under way at once. With 4 sessions and the submitter's 20 s all are sent, or not, in less than the
store's LEASE."""
LINES = 20
"""Overdue transactions with a line of their own, of those that come in one go; the others are summed up."""
INTERVAL = 1.0
"""Seconds between two looks, when nothing is due."""
BREATH = 0.05
"""Seconds between two batches, for the other writers of the store."""
AHEAD = 5.0
"""Seconds between two looks for what a clock put too far ahead."""
SWEEP = 5.0
"""Seconds between two looks at the copies; longer where a look takes long."""
LONGEST_PAUSE = 60.0
"""Between two tries when something fails."""
STORE_SECONDS = 10.0
AGAIN = timedelta(seconds=30)
"""After which a copy that Postfix did not take is handed to it again."""

REMEMBERED = 10_000
"""Submitted copies that the store could not note yet, kept in memory so that none is sent a second time for that."""

LOOK_SECONDS = 120.0
"""Longest that a look at Postfix's queue may take."""

Look = Callable[[Config], Hindrance]
"""Finds out what keeps messages from being sent again. Blocks; raises PostfixError."""
Told = Callable[[Message, Transaction, str], Awaitable[None]]
"""Tells the originator that nothing more is done for a transaction, and why. Called until it returns; after a crash
once more. Raises Mm4Error or OSError where it has to be tried again."""


async def noted_only(message: Message, transaction: Transaction, reason: str) -> None:
    """Tell nobody: the log line and the event are all."""


class Store(Protocol):
    """What the timers need of the store. Reads raise StoreError and may block, the futures fail with it."""

    def any_due(self, now: datetime) -> bool:
        """Whether anything may be due."""

    def any_to_send(self, now: datetime, host: str) -> bool:
        """Whether `claim` would find anything."""

    def ahead(self, now: datetime, limit: int, retries: Mapping[str, Retry], host: str) -> list[Ahead]:
        """Find what a clock put too far ahead."""

    def set_due(self, found: Sequence[Ahead]) -> Future[None]:
        """Have it due when it is in truth."""

    def overdue(self, now: datetime, limit: int, retries: Mapping[str, Retry]) -> Future[tuple[list[Late], int]]:
        """Take what is overdue."""

    def claim(
        self, now: datetime, limit: int, retries: Mapping[str, Retry], host: str, hindrance: Hindrance | None
    ) -> Future[tuple[list[Late], int]]:
        """Take what is to be sent again."""

    def sent_again(self, late: Late, at: datetime, queue_id: str | None, due_at: datetime) -> Future[bool]:
        """Note that it was."""

    def not_sent(self, late: Late, at: datetime, reason: str, again_at: datetime | None) -> Future[None]:
        """Note that it was not."""

    def settle(self, rows: Collection[int]) -> Future[None]:
        """Note that originators were told."""

    def message(self, token: str) -> Message | None:
        """Read a message."""

    def awaited(self, tokens: Sequence[str]) -> set[str]:
        """Which of them may have to be sent again."""


class Submitter(Protocol):
    """What the timers need of `mm4.postfix.submit.Submitter`, over the private line."""

    async def submit(
        self, mail_from: str, rcpt_to: str, message: bytes, envelope_id: str | None = None, notify: str | None = None
    ) -> str:
        """Hand a mail to Postfix and return its queue id; raises SubmissionError."""


class Counters(Protocol):
    """What is counted."""

    def unanswered(self, peer: str, result: str) -> None:
        """A transaction was overdue, sent again (`again`), not sent again (`unsent`), or has `failed`."""


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A copy that Postfix has taken, when, and until when its RES is awaited."""

    queue_id: str | None
    at: datetime
    due_at: datetime


class Timers:
    """The loops, in one event loop between `start` and `stop`. `spool` has been opened.

    `host` is the name under which this host's messages are recorded: only their copies lie here. Without `look`
    nothing is held back, without `purger` nothing is removed.
    """

    def __init__(
        self,
        *,
        store: Store,
        submitter: Submitter,
        spool: Spool,
        config: Config,
        host: str,
        now: Callable[[], datetime],
        counters: Counters,
        told: Told = noted_only,
        look: Look | None = None,
        purger: Purger | None = None,
        interval: float = INTERVAL,
        sweep: float = SWEEP,
        nearer: float = AHEAD,
    ) -> None:
        self._store = store
        self._submitter = submitter
        self._spool = spool
        self._host = host
        self._now = now
        self._counters = counters
        self._told = told
        self._look = look
        self._purger = purger
        self._seen: Hindrance | None = None
        self._look_again = 0.0
        self._interval = interval
        self._sweep_seconds = sweep
        self._nearer_seconds = nearer
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._lines = 0
        self._nearer_count = 0
        self._submission_failed = False
        self._submitted: dict[tuple[str, int, int], _Submitted] = {}
        self.update(config)

    def update(self, config: Config) -> None:
        """Take over a new configuration. The spool's folder is fixed."""
        self._retries = config.retries
        self._look_again = 0.0
        self._router = Router(config)
        self._spool.quota = config.spool.quota
        if self._purger is not None:
            self._purger.retention = timedelta(seconds=config.retention)

    def start(self) -> None:
        """Begin; what became due while nobody looked is done now."""
        self._tasks = [
            asyncio.create_task(self._repeat(self._mark, self._interval), name="overdue"),
            asyncio.create_task(self._repeat(self._send, self._interval), name="retry"),
            asyncio.create_task(self._repeat(self._nearer, self._nearer_seconds), name="clock"),
            asyncio.create_task(self._repeat(self._sweep, self._sweep_seconds), name="spool"),
        ]
        if self._purger is not None:
            self._tasks.append(asyncio.create_task(self._repeat(self._purger.purge, self._interval), name="retention"))

    async def stop(self, seconds: float = 2.0) -> None:
        """End the loops; what takes longer than so many seconds is left to its claim, which runs out."""
        self._stopping.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._sum_up()

    async def _repeat(self, step: Callable[[], Awaitable[float]], pause: float) -> None:
        """Do the step for ever. It says how many seconds to wait; while it fails that grows, and is said once."""
        failures = 0
        while not self._stopping.is_set():
            try:
                wait = await step()
                if failures:
                    log.info(logline(timer=step.__name__.strip("_"), works="again", failures=failures))
                failures = 0
            except Exception as error:
                failures += 1
                wait = min(pause * 2 ** min(failures, 10), LONGEST_PAUSE)
                if not isinstance(error, Mm4Error | OSError):
                    log.debug("a fault in a timer", exc_info=True)
                level = logging.ERROR if failures == 1 else logging.DEBUG
                log.log(level, logline(timer=step.__name__.strip("_"), error=f"{type(error).__name__}: {error}"))
            await self._wait(max(wait, BREATH))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    # --- a clock that was set back

    async def _nearer(self) -> float:
        """Have due again soon what a clock put far ahead before it was set back."""
        looking = asyncio.to_thread(self._store.ahead, self._now(), BATCH, self._retries, self._host)
        found = await within(STORE_SECONDS, looking)
        if found:
            await self._kept(self._store.set_due(found))
        self._nearer_count += len(found)
        if len(found) >= BATCH:
            return BREATH
        if self._nearer_count:
            log.warning(logline(clock="set back", due_sooner=self._nearer_count))
        self._nearer_count = 0
        return self._nearer_seconds

    # --- overdue

    async def _mark(self) -> float:
        now = self._now()
        seen = 0
        if await within(STORE_SECONDS, asyncio.to_thread(self._store.any_due, now)):
            found, seen = await self._kept(self._store.overdue(now, BATCH, self._retries))
            self._say(late for late in found if not late.again)
            await asyncio.gather(*(self._tell(late) for late in found if late.state is State.FAILED))
        if seen >= BATCH:
            return BREATH
        self._sum_up()
        return self._interval

    def _sum_up(self) -> None:
        """One line for those that had none of their own."""
        if self._lines > LINES:
            log.warning(logline(overdue="and others", count=self._lines - LINES))
        self._lines = 0

    def _say(self, found: Iterable[Late]) -> None:
        for late in found:
            failed = late.state is State.FAILED
            self._counters.unanswered(late.peer, "failed" if failed else "overdue")
            self._lines += 1
            if self._lines <= LINES:
                self._line(logging.WARNING, late, reason=late.reason)

    @staticmethod
    def _line(level: int, late: Late, **more: object) -> None:
        log.log(
            level,
            logline(
                token=late.token,
                peer=late.peer,
                type=late.type,
                transaction_id=late.transaction_id,
                message_id=late.message_id,
                recipient=late.recipient,
                state=late.state,
                attempts=late.attempts or None,
                **more,
            ),
        )

    async def _tell(self, late: Late) -> None:
        """Have the originator told; where that fails, the store gives the row again."""
        message = await within(STORE_SECONDS, asyncio.to_thread(self._store.message, late.token))
        for transaction in message.transactions if message else ():
            if (transaction.recipient, transaction.transaction_id) == (late.recipient, late.transaction_id):
                assert message is not None
                try:
                    await self._told(message, transaction, late.reason)
                except (Mm4Error, OSError) as error:
                    self._line(logging.ERROR, late, why="the originator is not told yet", error=error)
                    return
                break
        await self._kept(self._store.settle([late.row]))

    # --- sent again

    async def _send(self) -> float:
        now = self._now()
        if not await within(STORE_SECONDS, asyncio.to_thread(self._store.any_to_send, now, self._host)):
            return self._interval
        # Without retries nothing in the queue matters.
        hindrance = await self._hindrance() if any(retry.limit for retry in self._retries.values()) else None
        found, seen = await self._kept(self._store.claim(now, COPIES, self._retries, self._host, hindrance))
        failed = [late for late in found if late.state is State.FAILED]
        self._say(failed)
        results = await asyncio.gather(
            *(self._again(late) for late in found if late.state is not State.FAILED),
            *(self._tell(late) for late in failed),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return BREATH if seen >= COPIES else self._interval

    async def _hindrance(self) -> Hindrance | None:
        """What stands in the way now; a long queue is looked at seldom, so that this takes little of the time."""
        if self._look is not None and time.monotonic() >= self._look_again:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    self._seen = await asyncio.to_thread(self._look, self._router.config)
            except TimeoutError:
                raise PostfixError(f"Postfix's queue was not read within {LOOK_SECONDS:g} s") from None
            now = time.monotonic()
            self._look_again = now + max(self._interval, 20 * (now - begun))
        return self._seen

    async def _again(self, late: Late) -> None:
        """Send one claimed copy; the store learns what became of it.

        What was submitted and could not be noted is only noted when the store gives it again.
        """
        # A further attempt of the same row is another copy.
        key = (late.token, late.row, late.attempts)
        submitted = self._submitted.get(key)
        if submitted is None:
            submitted = await self._submit(late)
            if submitted is None:
                return
            self._remember(key, submitted)
        await self._kept(self._store.sent_again(late, submitted.at, submitted.queue_id, submitted.due_at))
        self._submitted.pop(key, None)
        self._line(logging.INFO, replace(late, state=State.WAITING), submitted=submitted.queue_id, reason=late.reason)
        self._counters.unanswered(late.peer, "again")

    async def _submit(self, late: Late) -> _Submitted | None:
        """Hand a copy to Postfix; None where that was not possible, which the store knows then."""
        copy = await within(STORE_SECONDS, asyncio.to_thread(self._spool.read, late.token))
        if copy is None or late.peer not in self._router.config.peers:
            reason = "no copy was kept" if copy is None else "the peer is not in the configuration"
            self._line(logging.WARNING, late, why="not sent again", reason=reason)
            self._counters.unanswered(late.peer, "unsent")
            await self._kept(self._store.not_sent(late, self._now(), reason, None))
            return None
        mail_from, data = copy
        becomes = self._router.outward(parse_address(late.recipient), late.peer, "retry").becomes
        assert becomes is not None
        # A reload may take the peer away while the copy is under way.
        pause = self._retries[late.peer].pause(late.attempts)
        # As the first time: bounces name the token, and none goes to the originator's own system.
        try:
            queue_id = await self._submitter.submit(mail_from, becomes, data, late.token, "FAILURE")
        except SubmissionError as error:
            level = logging.DEBUG if self._submission_failed else logging.ERROR
            self._submission_failed = True
            self._line(level, late, why="not submitted, tried again", error=error)
            self._counters.unanswered(late.peer, "unsent")
            await self._kept(self._store.not_sent(late, self._now(), str(error), self._now() + AGAIN))
            return None
        self._submission_failed = False
        at = self._now()
        return _Submitted(queue_id or None, at, at + pause)

    def _remember(self, key: tuple[str, int, int], submitted: _Submitted) -> None:
        if len(self._submitted) >= REMEMBERED:
            del self._submitted[next(iter(self._submitted))]
        self._submitted[key] = submitted

    # --- copies

    async def _sweep(self) -> float:
        """Drop the copies of what is answered, failed, bounced, forgotten or not known at all."""
        begun = time.monotonic()
        tokens = self._spool.tokens()
        if tokens:
            awaited = await within(STORE_SECONDS, asyncio.to_thread(self._store.awaited, tokens))
            await within(STORE_SECONDS, asyncio.to_thread(self._spool.remove, [t for t in tokens if t not in awaited]))
        return max(self._sweep_seconds, 20 * (time.monotonic() - begun))

    async def _kept(self, future: Future[T]) -> T:
        return await within(STORE_SECONDS, asyncio.wrap_future(future))

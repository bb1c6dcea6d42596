"""Trying: what the responder asks of the store and of Postfix, bounded and repeated while a failure may pass.

Every step has an upper bound, for Postfix waits only so long; what still fails at the deadline is raised, and the
caller lets Postfix bring the mail again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import ParamSpec, Protocol, TypeVar

from ..gateway.logline import logline
from ..protocol.errors import Mm4Error, StoreError, SubmissionError
from ..protocol.transaction import Direction, Message, Recording

__all__ = ["STORE_SECONDS", "SUBMIT_SECONDS", "Attempts", "Store", "Submitter"]

log = logging.getLogger("mm4.responder")

T = TypeVar("T")
P = ParamSpec("P")

STORE_SECONDS = 10.0
SUBMIT_SECONDS = 25.0
"""Bounds of one try, the second above the submitter's own 20 s. With retry_seconds = 20 the worst case, a
try that begins in the last moment, stays below lmtp_data_done_timeout = 60 s of the transport."""


class Store(Protocol):
    """What the responder needs of the store. Reads raise StoreError, the futures fail with it."""

    def message(self, token: str) -> Message | None:
        """Read a message; may block, so it is called from a thread."""

    def returned(self, transaction_id: str, message_id: str | None, direction: Direction) -> tuple[Message, ...]:
        """Read the messages of which a returned copy may be one, newest first; may block."""

    def record(self, message: Message) -> Future[Recording]:
        """Keep a message of our own."""

    def accepted(self, token: str, at: datetime, queue_id: str | None = None) -> Future[bool]:
        """Note that Postfix has the message."""

    def answered(self, token: str, at: datetime, answer_queue_id: str | None) -> Future[bool]:
        """Note that the answer is out."""

    def bounced(
        self, token: str, recipient: str | None, status: str, detail: str, at: datetime, queue_id: str | None
    ) -> Future[int]:
        """Note that the delivery to a recipient failed; gives how many transactions that concerned."""

    def event(
        self, token: str, at: datetime, what: str, queue_id: str | None = None, detail: str | None = None
    ) -> Future[None]:
        """Note that something happened."""


class Submitter(Protocol):
    """What the responder needs of `mm4.postfix.submit.Submitter`."""

    async def submit(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
        notify: str | None = None,
    ) -> str:  # fmt: skip
        """Hand a mail to Postfix and return the id that Postfix names; raises SubmissionError."""


class Attempts:
    """The store and Postfix as the responder uses them: each step bounded, and repeated until a deadline.

    `pause_seconds` lie between two tries, `submit_seconds` and `store_seconds` bound one. Deadlines are values of
    time.monotonic(). After `stop` nothing is tried a second time. `copier` submits what carries others' headers.
    """

    def __init__(
        self,
        store: Store,
        submitter: Submitter,
        copier: Submitter,
        *,
        pause_seconds: float,
        submit_seconds: float,
        store_seconds: float,
    ) -> None:
        self.store = store
        self._submitter = submitter
        self._copier = copier
        self._pause_seconds = pause_seconds
        self._submit_seconds = submit_seconds
        self._store_seconds = store_seconds
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="mm4-responder")
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let waiting retries give up at once."""
        self._stopping.set()

    def close(self) -> None:
        """Stop the threads, without waiting for one that hangs in the store or the disk."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def message(self, token: str) -> Message | None:
        """Read a message. Raises StoreError."""
        return await self.asked("the store", self.store.message, token)

    async def asked(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something that may block, in a thread; StoreError, which names `what`, when it takes too long."""
        call = asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*args, **kwargs))
        return await self._within(call, what)

    async def kept(self, future: Future[T]) -> T:
        """Wait for the store to write. Raises StoreError."""
        return await self._within(asyncio.wrap_future(future), "the store")

    async def submit(self, mail_from: str, rcpt_to: str, message: bytes, envelope_id: str | None = None) -> str:
        """Hand a mail of ours to Postfix; gives the id that Postfix names. Raises SubmissionError."""
        return await self._bounded(self._submitter.submit(mail_from, rcpt_to, message, envelope_id), rcpt_to)

    async def copy(
        self, mail_from: str, rcpt_to: Sequence[str], message: bytes, envelope_id: str, notify: str
    ) -> str:
        """Hand a mail with others' headers to Postfix; gives its queue id. Raises SubmissionError."""
        submitted = self._copier.submit(mail_from, rcpt_to, message, envelope_id, notify)
        return await self._bounded(submitted, ", ".join(rcpt_to))

    async def _bounded(self, submitted: Awaitable[str], rcpt_to: str) -> str:
        try:
            async with asyncio.timeout(self._submit_seconds):
                return await submitted
        except TimeoutError:
            raise SubmissionError(f"to {rcpt_to}: not submitted in {self._submit_seconds:g} s") from None

    async def retried(
        self, step: Callable[[], Awaitable[T]], deadline: float, again: Callable[[], None] = lambda: None
    ) -> T:
        """Do a step, at least once, again until the deadline while it fails for a reason that may pass.

        `again` is called before each further try.
        """
        while True:
            try:
                return await step()
            except (Mm4Error, OSError) as error:
                if self._stopping.is_set() or time.monotonic() + self._pause_seconds > deadline:
                    raise
                log.info(logline(why="trying again", seconds=self._pause_seconds, error=error))
                again()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_seconds):
                    await self._stopping.wait()

    @contextlib.asynccontextmanager
    async def alone(self, token: str) -> AsyncIterator[None]:
        """Let one delivery of a token run at a time: Postfix may repeat one whose reply it did not get."""
        lock, users = self._locks.get(token, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[token] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            users = self._locks[token][1] - 1
            if users:
                self._locks[token] = lock, users
            else:
                del self._locks[token]

    async def _within(self, future: asyncio.Future[T], what: str) -> T:
        """Wait for something that cannot be cancelled; StoreError when it takes too long."""
        await asyncio.wait({future}, timeout=self._store_seconds)
        if future.done():
            return future.result()
        future.add_done_callback(lambda late: late.cancelled() or late.exception())  # no "never retrieved"
        raise StoreError(f"no answer from {what} in {self._store_seconds:g} s")

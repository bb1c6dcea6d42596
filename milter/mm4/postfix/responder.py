"""The responder: what Postfix delivers to it is committed, so now the answer may go out.

`<token>@responder.mm4.invalid` says that Postfix kept a message; mail to local.domain is a bounce of
something we sent, or somebody's mail, which goes to a Maildir. Nothing is ever answered 5xx: what fails
(store, submission, disk) is tried again for `retry_seconds`, then 451, and Postfix's queue keeps it and is
flushed as soon as things work again. An answer goes out at least once; twice only after a kill between its
submission and the note of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from ..gateway.logline import logline
from ..gateway.names import MAILDIR_DOMAIN, RESPONDER_DOMAIN, TOKEN
from ..protocol.address import parse_address
from ..protocol.errors import Mm4Error, Reply, StoreError, SubmissionError
from ..protocol.transaction import Direction, Message, State
from .dsn import Recipient, Report, parse_report
from .lmtp import Envelope, split_address
from .maildir import store_in
from .spool import Spool, as_received

__all__ = ["ACTIONS", "Counters", "Flush", "Responder", "Store", "Submitter", "received_ids"]

log = logging.getLogger("mm4.responder")

T = TypeVar("T")

OK = Reply(250, "2.0.0", "Ok")
LATER = Reply(451, "4.3.0", "Try again later")

TOKEN_BYTES = 4096
"""What is read of a message that brings tokens only: the top Received header lies in it."""
STORE_SECONDS = 10.0
SUBMIT_SECONDS = 25.0
"""Bounds of one try, the second above the submitter's own 20 s. With retry_seconds = 20 the worst case, a
try that begins in the last moment, stays below lmtp_data_done_timeout = 60 s of the transport."""
FLUSH_SECONDS = 3.0
FLUSH_LONGEST = 60.0
"""Between a failure and the flush that follows it; a flush that fails is repeated with doubled pauses."""
ACTIONS = ("failed", "delayed", "delivered", "relayed", "expanded")  # RFC 3464 2.3.3
DETAIL_LENGTH = 1000
"""Characters of a diagnostic that are kept; a remote system may write any number."""
REMEMBERED = 10_000
"""Submitted answers that the store could not note yet, kept in memory so that a second try sends none twice."""

_RECEIVED = re.compile(rb"(?:^|\n)Received:((?:[^\n]|\n[ \t])*)", re.IGNORECASE)
# "with" first: a HELO name that says "id" stands before it. Mail from Postfix itself or sendmail(1) has none.
_WITH_ID = re.compile(rb"\bwith\s+[A-Z0-9]+\s+id\s+(\w+)")
_ID = re.compile(rb"\bid\s+(\w+)")
_REQUEUED = re.compile(rb"\s\(Postfix, from userid [0-9]+\)\s+id\s")


class Store(Protocol):
    """What the responder needs of the store. Reads raise StoreError, the futures fail with it."""

    def message(self, token: str) -> Message | None:
        """Read a message; may block, so it is called from a thread."""

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

    async def submit(self, mail_from: str, rcpt_to: str, message: bytes) -> str:
        """Hand a mail to Postfix and return the id that Postfix names; raises SubmissionError."""


class Counters(Protocol):
    """What is counted, where somebody wants to know."""

    def answer(self, result: str) -> None:
        """An answer was submitted, already out, retried (once a further try) or deferred (451)."""

    def bounce(self, action: str) -> None:
        """A report of one recipient came in; `action` is one of ACTIONS or `other`."""

    def copy(self, result: str) -> None:
        """A copy to send again was kept, or not: `full` or `error`."""


Flush = Callable[[str], Awaitable[None]]
"""Asks Postfix to deliver at once what it has deferred for a domain; raises Mm4Error or OSError."""


def received_ids(data: bytes) -> list[str]:
    """Return the queue id in the topmost Received header; [] where there is none.

    `postsuper -r` gives a message a new id and puts one more header on top ("from userid"): then the ids
    below follow, down to the one under which the message first came in.
    """
    found = []
    for header in _RECEIVED.finditer(data[:TOKEN_BYTES].replace(b"\r\n", b"\n").partition(b"\n\n")[0]):
        match = _WITH_ID.search(header[1]) or _ID.search(header[1])
        if match:
            found.append(match[1].decode("ascii", "replace"))
        if _REQUEUED.search(header[1]) is None:
            break
    return found


class Responder:
    """The LMTP handler for tokens, bounces and whatever else reaches local.domain.

    `unclaimed` is the Maildir for mail that is no bounce of ours, `now` the clock (aware, UTC),
    `retry_seconds` how long a failure is tried again, with `pause_seconds` between, before the 451. `spool` takes
    copies of what goes to the peers in `retried`.
    `start` and `stop` belong to one event loop; `deliver` works without them, but nothing is flushed then.
    """

    def __init__(
        self,
        *,
        store: Store,
        submitter: Submitter,
        local_domains: Collection[str],
        unclaimed: Path,
        flush: Flush,
        now: Callable[[], datetime],
        counters: Counters | None = None,
        spool: Spool | None = None,
        retried: Collection[str] = (),
        retry_seconds: float = 20.0,
        pause_seconds: float = 1.0,
        flush_seconds: float = FLUSH_SECONDS,
        submit_seconds: float = SUBMIT_SECONDS,
        store_seconds: float = STORE_SECONDS,
    ) -> None:
        self._store = store
        self._submitter = submitter
        self._unclaimed = unclaimed
        self._flush = flush
        self._now = now
        self._counters = counters
        self._spool = spool
        self._retry_seconds = retry_seconds
        self._pause_seconds = pause_seconds
        self._flush_seconds = flush_seconds
        self._submit_seconds = submit_seconds
        self._store_seconds = store_seconds
        self._local_domains: frozenset[str] = frozenset()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="mm4-responder")
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._submitted: dict[str, str] = {}
        self._flush_due: dict[str, float] = {}
        self._flush_asked = asyncio.Event()
        self._stopping = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.update(local_domains=local_domains, retried=retried)

    def update(self, *, local_domains: Collection[str], retried: Collection[str] = ()) -> None:
        """Take over what a reload may change; `retried` names the peers to whom messages are sent again."""
        self._copied_peers = frozenset(retried)
        self._local_domains = frozenset(domain.lower().removesuffix(".") for domain in local_domains)

    def start(self) -> None:
        """Flush what Postfix has deferred while nobody was here, and from now on after each failure."""
        self._ask_flush(self._ours(), 0)
        self._flusher = asyncio.get_running_loop().create_task(self._flush_for_ever())

    async def stop(self) -> None:
        """End the flushing and let waiting retries give up at once; call it before the server's drain.

        What is deferred by this is flushed by the next start. `close` follows after the drain.
        """
        self._stopping.set()
        if self._flusher is not None:
            self._flusher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flusher

    def missed(self) -> None:
        """Have flushed what Postfix deferred without an answer of ours, because we stood still for too long."""
        self._ask_flush(self._ours(), self._flush_seconds)

    def _ours(self) -> list[str]:
        """Every domain whose mail waits while this process is away; the Maildirs are served by it too."""
        return [RESPONDER_DOMAIN, MAILDIR_DOMAIN, *sorted(self._local_domains)]

    def close(self) -> None:
        """Stop the threads, without waiting for one that hangs in the store or the disk."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- the LMTP handler

    def rcpt(self, envelope: Envelope, address: str) -> Reply:
        """Accept everything: Postfix's transport table decides what comes here, and nothing may bounce."""
        return Reply(250, "2.1.5", "Ok")

    def wanted(self, envelope: Envelope) -> int | None:
        """Want the top of a message that brings only tokens, else all of it; all, too, where a copy may be needed."""
        domains = {split_address(recipient)[1] for recipient in envelope.recipients}
        if domains != {RESPONDER_DOMAIN} or (self._copied_peers and self._outward(envelope.mail_from)):
            return None
        return TOKEN_BYTES

    def _outward(self, mail_from: str) -> bool:
        """Whether this may be the sender of something on its way to a peer: one of ours, and no inward token."""
        local, domain = split_address(mail_from)
        return not mail_from or (domain in self._local_domains and TOKEN.match(local.lower()) is None)

    async def deliver(self, envelope: Envelope, data: bytes) -> list[Reply]:
        """Serve each recipient; 250 for what is done, 451 for what shall come again."""
        deadline = time.monotonic() + self._retry_seconds
        jobs = [self._serve(envelope, recipient, data, deadline) for recipient in envelope.recipients]
        if len(jobs) == 1:  # a token nearly always comes alone; no task of its own for it
            return [await jobs[0]]
        return list(await asyncio.gather(*jobs))

    async def _serve(self, envelope: Envelope, recipient: str, data: bytes, deadline: float) -> Reply:
        begun = time.monotonic()
        local, domain = split_address(recipient)
        ids = received_ids(data)
        # The order of the line's first keys; what stays None is left out.
        said: dict[str, object] = {"queue_id": ids[0] if ids else None, "token": None, "peer": None}
        said |= {"answer": None, "status": None, "submitted": None}
        level, reply = logging.INFO, OK
        try:
            if domain == RESPONDER_DOMAIN:
                level = await self._token(local, ids, envelope, data, said, deadline)
            else:
                level = await self._mail(envelope, recipient, data, said, deadline)
        except Exception as error:
            # One recipient's failure, even by a fault of ours, must not make its neighbours come again.
            level, reply = logging.ERROR, LATER
            said["error"] = f"{type(error).__name__}: {error}"
            if said["answer"] is not None:
                self._count_answer("deferred")
            if not isinstance(error, Mm4Error | OSError):
                log.exception("a fault while serving %s", ascii(recipient))
            if domain == RESPONDER_DOMAIN or domain in self._local_domains:
                self._ask_flush([domain], self._flush_seconds)
        said |= {"reply": reply.code, "ms": round((time.monotonic() - begun) * 1000)}
        log.log(level, logline(**said))
        return reply

    def _count_answer(self, result: str) -> None:
        if self._counters is not None:
            self._counters.answer(result)

    # --- tokens

    async def _token(
        self, local: str, ids: list[str], envelope: Envelope, data: bytes, said: dict[str, object], deadline: float
    ) -> int:
        token = local.lower()
        said["token"] = local
        if TOKEN.match(token) is None:
            said["why"] = "no token"
            return logging.WARNING
        async with self._alone(token):
            message = await self._retried(lambda: self._message(token), deadline)
            if message is None:
                said["why"] = "unknown token"
                return logging.WARNING
            said["peer"] = message.peer
            if ids and message.queue_id and message.queue_id not in ids:
                said["why"] = f"forged: recorded for queue id {message.queue_id}"
                return logging.WARNING
            if message.accepted_at is None:
                await self._copy(message, envelope, data, said)
            if message.answer is None or message.reply_to is not None:
                # Nothing was asked for, or the RES waits for another's word.
                if message.accepted_at is None:
                    queue_id = message.queue_id or (ids[-1] if ids else None)
                    await self._retried(
                        lambda: self._kept(self._store.accepted(token, self._now(), queue_id)), deadline
                    )
                return logging.INFO
            said |= {"answer": message.answer.type, "status": message.answer.status}
            if message.answered_at is None:
                said["submitted"] = await self._answer(message, deadline)
            else:
                said |= {"submitted": message.answer_queue_id, "why": "already answered"}
                self._count_answer("already")
            return logging.INFO

    async def _copy(self, message: Message, envelope: Envelope, data: bytes, said: dict[str, object]) -> None:
        """Keep a copy of what may have to be sent again, before the store says that it is on its way.

        Without room, or a disk that works, there is none, and the message is sent once: no token waits for that.
        """
        awaited = any(t.due_at is not None and t.state in (State.RECORDED, State.WAITING) for t in message.transactions)
        if self._spool is None or message.direction is not Direction.OUT or message.peer not in self._copied_peers:
            return
        if not awaited or (len(data) == TOKEN_BYTES < envelope.size):  # the second: cut, just before a reload
            return
        spool, loop = self._spool, asyncio.get_running_loop()
        try:
            kept = await self._within(
                loop.run_in_executor(
                    self._pool, lambda: spool.keep(message.token, envelope.mail_from, as_received(data))
                ),
                self._store_seconds,
                "the spool",
            )
            result = "kept" if kept else "full"
        except (Mm4Error, OSError) as error:
            result = "error"
            said["error"] = error
        said["copy"] = result
        if self._counters is not None:
            self._counters.copy(result)

    async def _answer(self, message: Message, deadline: float) -> str:
        """Submit the answer and note it. What was submitted but not noted is never submitted a second time."""
        token, answer = message.token, message.answer
        assert answer is not None
        submitted = self._submitted.get(token)
        if submitted is None:
            submitted = await self._retried(
                lambda: self._submit(answer.mail_from, answer.rcpt_to, answer.message),
                deadline,
                lambda: self._count_answer("retried"),
            )
            self._count_answer("submitted")
            if len(self._submitted) >= REMEMBERED:
                self._submitted.pop(next(iter(self._submitted)))
            self._submitted[token] = submitted
        # Noted with the time of the submission, however long the note takes.
        at, queue_id = self._now(), submitted or None
        await self._retried(lambda: self._kept(self._store.answered(token, at, queue_id)), deadline)
        self._submitted.pop(token, None)
        return submitted

    @contextlib.asynccontextmanager
    async def _alone(self, token: str) -> AsyncIterator[None]:
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

    # --- bounces and other mail

    async def _mail(
        self, envelope: Envelope, recipient: str, data: bytes, said: dict[str, object], deadline: float
    ) -> int:
        local, domain = split_address(recipient)
        report = None
        if not envelope.mail_from and domain in self._local_domains:
            report = await asyncio.to_thread(parse_report, data)
        if report is not None and await self._bounce(local, report, said, deadline):
            return logging.INFO
        loop = asyncio.get_running_loop()
        path = await self._retried(
            lambda: self._within(
                loop.run_in_executor(self._pool, store_in, self._unclaimed, envelope.mail_from, recipient, data),
                self._store_seconds,
                "the Maildir of unclaimed mail",
            ),
            deadline,
        )
        said |= {"why": "unclaimed", "from": envelope.mail_from, "to": recipient, "file": path.name}
        if report is not None:
            said |= {"message_id": report.message_id, "transaction_id": report.transaction_id}
        return logging.WARNING

    async def _bounce(self, local: str, report: Report, said: dict[str, object], deadline: float) -> bool:
        """Note what a report says of a message of ours; False where it is of none, or says nothing."""
        candidates = (local.lower(), (report.envelope_id or "").lower())
        token = next((text for text in candidates if TOKEN.match(text)), None)
        if token is None or not report.recipients:
            return False
        message = await self._retried(lambda: self._message(token), deadline)
        if message is None:
            said |= {"token": token, "why": "unknown token"}
            return False
        said |= {"token": token, "peer": message.peer, "message_id": report.message_id}
        queue_id = None if said["queue_id"] is None else str(said["queue_id"])
        at = self._now()
        for group in report.recipients:
            await self._retried(partial(self._note, message, group, at, queue_id), deadline)
            if self._counters is not None:
                self._counters.bounce(group.action if group.action in ACTIONS else "other")
        said["recipients"] = ",".join(f"{g.final_recipient or g.original_recipient}" for g in report.recipients)
        said["action"] = ",".join(group.action or "-" for group in report.recipients)
        said["status"] = ",".join(group.status or "-" for group in report.recipients)
        return True

    async def _note(self, message: Message, group: Recipient, at: datetime, queue_id: str | None) -> None:
        recipient = _transaction_of(message, group)
        detail = (group.diagnostic or f"{group.action} {group.status}")[:DETAIL_LENGTH]
        if group.action == "failed":
            status = group.status or "5.0.0"  # RFC 3463: some permanent failure
            await self._kept(self._store.bounced(message.token, recipient, status, detail, at, queue_id))
        else:
            detail = " ".join(text for text in (recipient, group.status, detail) if text)
            what = group.action if group.action in ACTIONS else "reported"
            await self._kept(self._store.event(message.token, at, what, queue_id, detail))

    # --- trying, waiting, flushing

    async def _message(self, token: str) -> Message | None:
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._store.message, token)
        return await self._within(future, self._store_seconds, "the store")

    async def _kept(self, future: Future[T]) -> T:
        return await self._within(asyncio.wrap_future(future), self._store_seconds, "the store")

    async def _submit(self, mail_from: str, rcpt_to: str, message: bytes) -> str:
        try:
            async with asyncio.timeout(self._submit_seconds):
                return await self._submitter.submit(mail_from, rcpt_to, message)
        except TimeoutError:
            raise SubmissionError(f"to {rcpt_to}: not submitted in {self._submit_seconds:g} s") from None

    async def _within(self, future: asyncio.Future[T], seconds: float, what: str) -> T:
        """Wait for something that cannot be cancelled; StoreError when it takes too long."""
        await asyncio.wait({future}, timeout=seconds)
        if future.done():
            return future.result()
        future.add_done_callback(lambda late: late.cancelled() or late.exception())  # no "never retrieved"
        raise StoreError(f"no answer from {what} in {seconds:g} s")

    async def _retried(
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

    def _ask_flush(self, domains: Iterable[str], seconds: float) -> None:
        """Have the domains flushed in so many seconds, or earlier where that is planned already."""
        due = time.monotonic() + seconds
        for domain in domains:
            self._flush_due[domain] = min(due, self._flush_due.get(domain, due))
        self._flush_asked.set()

    async def _flush_for_ever(self) -> None:
        """Have Postfix try again soon what was refused: by itself it would wait for five minutes or more.

        A flush that fails is repeated, at last once a minute (Postfix may be down); only the first of a
        row of failures is an error in the log.
        """
        failures: dict[str, int] = {}
        while True:
            self._flush_asked.clear()
            wait = min(self._flush_due.values()) - time.monotonic() if self._flush_due else None
            if wait is None or wait > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._flush_asked.wait()
            now = time.monotonic()
            due = [domain for domain, at in self._flush_due.items() if at <= now]
            for domain in due:
                del self._flush_due[domain]
            results = await asyncio.gather(*map(self._flush, due), return_exceptions=True)
            for domain, result in zip(due, results, strict=True):
                if not isinstance(result, BaseException):
                    failures.pop(domain, None)
                    continue
                count = failures[domain] = failures.get(domain, 0) + 1
                level = logging.ERROR if count == 1 else logging.DEBUG
                log.log(level, logline(why="cannot flush the queue", domain=domain, error=result))
                self._ask_flush([domain], min(self._flush_seconds * 2 ** min(count - 1, 10), FLUSH_LONGEST))


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

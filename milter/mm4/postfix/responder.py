"""The responder: what Postfix delivers to it is committed, so now the answer may go out.

`<token>@responder.mm4.invalid` says that Postfix kept a message; `<token>.split@responder.mm4.invalid` that one has to
go to a further side, by a mail that is made and submitted here; mail to local.domain is a bounce of something we sent,
or somebody's mail, which goes to a Maildir. Nothing is ever answered 5xx: what fails (store, submission, disk) is tried
again for `retry_seconds`, then 451, and Postfix's queue keeps it and is flushed as soon as things work again. An
answer, and a further side's mail, goes out at least once; twice only after a kill between its submission and the note.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from ..gateway.edits import Edit, rewritten
from ..gateway.logline import logline
from ..gateway.names import MAILDIR_DOMAIN, RESPONDER_DOMAIN, TOKEN, answer_envelope, split_name, split_token
from ..gateway.routing import Router
from ..protocol.errors import Mm4Error, Reply
from ..protocol.transaction import Direction, Message, Split, State, Transaction
from . import bounces
from .attempts import STORE_SECONDS, SUBMIT_SECONDS, Attempts, Store, Submitter
from .bounces import Bounces
from .express import Express, Turn
from .flusher import FLUSH_SECONDS, Flush, Flusher
from .lmtp import Envelope
from .mailpath import split_address
from .spool import Spool, as_received
from .strays import Strays

__all__ = ["Counters", "Responder", "received_ids"]

log = logging.getLogger("mm4.responder")

OK = Reply(250, "2.0.0", "Ok")
LATER = Reply(451, "4.3.0", "Try again later")

TOKEN_BYTES = 4096
"""What is read of a message that brings tokens only: the top Received header lies in it."""
REMEMBERED = 10_000
"""Submitted answers that the store could not note yet, kept in memory so that a second try sends none twice."""

_RECEIVED = re.compile(rb"(?:^|\n)Received:((?:[^\n]|\n[ \t])*)", re.IGNORECASE)
# "with" first: a HELO name that says "id" stands before it. Mail from Postfix itself or sendmail(1) has none.
_WITH_ID = re.compile(rb"\bwith\s+[A-Z0-9]+\s+id\s+(\w+)")
_ID = re.compile(rb"\bid\s+(\w+)")
_REQUEUED = re.compile(rb"\s\(Postfix, from userid [0-9]+\)\s+id\s")


class Counters(bounces.Counters, Protocol):
    """What is counted, where somebody wants to know."""

    def answer(self, result: str) -> None:
        """An answer was submitted, already out, retried (once a further try) or deferred (451)."""

    def copy(self, result: str) -> None:
        """A copy to send again was kept, or not: `full` or `error`."""


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

    `unclaimed` is the Maildir for mail that is no bounce of ours, `now` the clock (aware, UTC), `host` our name,
    `retry_seconds` how long a failure is tried again, with `pause_seconds` between, before the 451. `spool` takes
    copies of what goes to the peers that the configuration has messages sent again to. `submitter` takes answers,
    `copier` (None: the same) what carries the headers of others; `express` takes the usual answers in one turn.
    `start` and `stop` belong to one event loop; `deliver` works without them, but nothing is flushed then.
    """

    def __init__(
        self,
        *,
        store: Store,
        submitter: Submitter,
        router: Router,
        unclaimed: Path,
        flush: Flush,
        now: Callable[[], datetime],
        host: str = "",
        counters: Counters | None = None,
        spool: Spool | None = None,
        copier: Submitter | None = None,
        express: Express | None = None,
        retry_seconds: float = 20.0,
        pause_seconds: float = 1.0,
        flush_seconds: float = FLUSH_SECONDS,
        submit_seconds: float = SUBMIT_SECONDS,
        store_seconds: float = STORE_SECONDS,
    ) -> None:
        self._attempts = Attempts(
            store,
            submitter,
            copier or submitter,
            pause_seconds=pause_seconds,
            submit_seconds=submit_seconds,
            store_seconds=store_seconds,
        )
        self._bounces = Bounces(self._attempts, router, now=now, host=host, counters=counters)
        self._store = store
        self._strays = Strays(self._attempts, router, unclaimed)
        self._flusher = Flusher(flush, flush_seconds)
        self._now = now
        self._counters = counters
        self._spool = spool
        self._express = express
        self._retry_seconds = retry_seconds
        self._submitted: dict[str, str] = {}
        self._use(router)

    def update(self, router: Router) -> None:
        """Take over what a reload may change."""
        self._use(router)
        self._bounces.update(router)
        self._strays.update(router)

    def _use(self, router: Router) -> None:
        self._local_domains = router.own_domains
        self._copied_peers = frozenset(name for name, retry in router.config.retries.items() if retry.limit)

    async def gave_up(self, message: Message, transaction: Transaction, reason: str) -> None:
        """Tell an originator that nothing more is done for his message. Raises StoreError, SubmissionError."""
        await self._bounces.gave_up(message, transaction, reason)

    def start(self) -> None:
        """Flush what Postfix has deferred while nobody was here, and from now on after each failure."""
        self._flusher.ask(self._ours(), at_once=True)
        self._flusher.start()

    async def stop(self) -> None:
        """End the flushing and let waiting retries give up at once; call it before the server's drain.

        What is deferred by this is flushed by the next start. `close` follows after the drain.
        """
        self._attempts.stop()
        await self._flusher.stop()

    def missed(self) -> None:
        """Have flushed what Postfix deferred without an answer of ours, because we stood still for too long."""
        self._flusher.ask(self._ours())

    def _ours(self) -> list[str]:
        """Every domain whose mail waits while this process is away; the Maildirs are served by it too."""
        return [RESPONDER_DOMAIN, MAILDIR_DOMAIN, *sorted(self._local_domains)]

    def close(self) -> None:
        """Stop the threads, without waiting for one that hangs in the store or the disk."""
        self._attempts.close()

    # --- the LMTP handler

    def rcpt(self, envelope: Envelope, address: str) -> Reply:
        """Accept everything: Postfix's transport table decides what comes here, and nothing may bounce."""
        return Reply(250, "2.1.5", "Ok")

    def wanted(self, envelope: Envelope) -> int | None:
        """Want the top of a message that brings only tokens, else all of it; all, too, where a copy may be needed, or
        a further side's mail is made of it.
        """
        addresses = [split_address(recipient) for recipient in envelope.recipients]
        domains = {domain for _, domain in addresses}
        if any(split_token(local) for local, _ in addresses):
            return None
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
                self._flusher.ask([domain])
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
        split = split_token(local)
        token = split or local.lower()
        said["token"] = local
        if TOKEN.match(token) is None:
            said["why"] = "no token"
            return logging.WARNING
        async with self._attempts.alone(token):
            if self._express is None or split is not None:
                message = await self._attempts.retried(lambda: self._attempts.message(token), deadline)
            else:
                turn = await self._attempts.retried(
                    partial(self._turn, self._express, token, ids, said), deadline, lambda: self._retried(said)
                )
                if turn.noted:
                    return logging.INFO
                message = turn.message
            if message is None or (message.split is None) != (split is None):
                said["why"] = "unknown token"
                return logging.WARNING
            said["peer"] = message.peer
            came_as = message.queue_id if message.split is None else message.split.carrier
            if ids and came_as and came_as not in ids:
                said["why"] = f"forged: recorded for queue id {came_as}"
                return logging.WARNING
            if message.split is not None:
                await self._send_split(message, message.split, data, said, deadline)
            elif message.accepted_at is None and not len(data) == TOKEN_BYTES < envelope.size:  # cut before a reload
                await self._copy(message, envelope.mail_from, as_received(data), said)
            if message.answer is None or message.reply_to is not None:
                # Nothing was asked for, or the RES waits for another's word.
                if message.accepted_at is None and message.split is None:
                    queue_id = message.queue_id or (ids[-1] if ids else None)
                    await self._accepted(token, queue_id, deadline)
                return logging.INFO
            said |= {"answer": message.answer.type, "status": message.answer.status}
            if message.answered_at is None:
                said["submitted"] = await self._answer(message, deadline)
            else:
                said |= {"submitted": message.answer_queue_id, "why": "already answered"}
                self._count_answer("already")
            return logging.INFO

    async def _turn(self, express: Express, token: str, ids: list[str], said: dict[str, object]) -> Turn:
        """Serve the token in one turn, as far as it is that simple. Raises StoreError, SubmissionError."""
        if token in self._submitted:  # a turn that took too long; what is left is to note it
            return Turn(await self._attempts.message(token))
        turn = await express.turn(token, ids, self._remember)
        message = turn.message
        if message is None or message.answer is None or (turn.submitted is None and turn.failure is None):
            return turn
        said |= {"peer": message.peer, "answer": message.answer.type, "status": message.answer.status}
        if turn.failure is not None:
            raise turn.failure
        said["submitted"] = turn.submitted
        self._count_answer("submitted")
        if turn.noted:
            self._submitted.pop(token, None)
        return turn

    def _retried(self, said: dict[str, object]) -> None:
        """A further try is one of an answer, where it was known that one is due."""
        if said["answer"] is not None:
            self._count_answer("retried")

    async def _accepted(self, token: str, queue_id: str | None, deadline: float) -> None:
        at = self._now()
        await self._attempts.retried(lambda: self._attempts.kept(self._store.accepted(token, at, queue_id)), deadline)

    async def _send_split(
        self, message: Message, split: Split, data: bytes, said: dict[str, object], deadline: float
    ) -> None:
        """Make a further side's mail of the first side's, submit it, and note that, as it is done with an answer."""
        if message.accepted_at is not None:
            said["why"] = "already sent"
            return
        name = split_name(message.token)
        submitted = self._submitted.get(name)
        # Whatever else is known of one, a RES under the same ids for example: it has not been sent.
        left = {t.recipient for t in message.transactions if t.state is not State.DUPLICATE}
        addresses = tuple(dict.fromkeys(address for key, address in split.recipients if key in left))
        if submitted is None and addresses:
            content = rewritten(as_received(data), (Edit(*edit) for edit in split.edits))
            await self._copy(message, split.mail_from, content, said)
            submitted = await self._attempts.retried(
                lambda: self._attempts.copy(split.mail_from, addresses, content, message.token, split.notify), deadline
            )
            self._remember(name, submitted)
        said["sent"] = submitted
        await self._accepted(message.token, submitted or None, deadline)
        self._submitted.pop(name, None)

    def _remember(self, name: str, submitted: str) -> None:
        if len(self._submitted) >= REMEMBERED:
            self._submitted.pop(next(iter(self._submitted)))
        self._submitted[name] = submitted

    async def _copy(self, message: Message, mail_from: str, content: bytes, said: dict[str, object]) -> None:
        """Keep a copy of what may have to be sent again, before the store says that it is on its way.

        Without room, or a disk that works, there is none, and the message is sent once: no token waits for that.
        """
        awaited = any(t.due_at is not None and t.state in (State.RECORDED, State.WAITING) for t in message.transactions)
        if self._spool is None or message.direction is not Direction.OUT or message.peer not in self._copied_peers:
            return
        if not awaited:
            return
        try:
            kept = await self._attempts.asked("the spool", self._spool.keep, message.token, mail_from, content)
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
            submitted = await self._attempts.retried(
                lambda: self._attempts.submit(
                    answer.mail_from, answer.rcpt_to, answer.message, answer_envelope(token)
                ),
                deadline,
                lambda: self._count_answer("retried"),
            )
            self._count_answer("submitted")
            self._remember(token, submitted)
        # Noted with the time of the submission, however long the note takes.
        at, queue_id = self._now(), submitted or None
        await self._attempts.retried(lambda: self._attempts.kept(self._store.answered(token, at, queue_id)), deadline)
        self._submitted.pop(token, None)
        return submitted

    # --- bounces and other mail

    async def _mail(
        self, envelope: Envelope, recipient: str, data: bytes, said: dict[str, object], deadline: float
    ) -> int:
        if await self._bounces.take(envelope, recipient, data, said, deadline):
            return logging.INFO
        return await self._strays.take(envelope, recipient, data, said, deadline)

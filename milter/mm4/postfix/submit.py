"""Handing a finished mail to Postfix: by `sendmail -bs` or by SMTP to the private submission line.

Both are one SMTP dialogue over kept sessions, spoken from worker threads. `submit` returns only after
Postfix has said 250 to the whole message; anything else is a SubmissionError, always temporary, within
`timeout` seconds. After an error the mail may nevertheless be in the queue (Postfix died between its commit
and its 250): at least once, never zero.

Why a kept `sendmail -bs` and not one `sendmail -i -f` a message: acks of 0.8 kB into a private Postfix
3.7.11 on 2 cores, handed over a second, median of 3 rounds of 400:

    one thread    sendmail -i   94 (10.7 ms each)    sendmail -bs  140 ( 7.1 ms each)    SMTP   854
    4 threads     sendmail -i  179                   sendmail -bs  286                   SMTP  1301

Either way postdrop(1) runs once a message; -bs saves the start of sendmail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import smtplib
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from ..protocol.errors import SubmissionError
from .dialogue import Dialogue

__all__ = ["Submit", "Submitter"]

log = logging.getLogger("mm4.submit")

T = TypeVar("T")

_QUEUED_AS = re.compile(r"\bqueued as ([A-Za-z0-9]+)")
_ADDRESS = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[ -~])*"|[^"<>\x00-\x20\x7f])*')
_GRACE = 1.0
"""Seconds beyond the timeout after which a session is cut from outside, whatever its thread waits for."""


class Submit(Protocol):
    """Hands one mail to Postfix in the thread in which it is called: see `Submitter.submit`."""

    def __call__(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
        notify: str | None = None,
    ) -> str:  # fmt: skip
        """Return the id that Postfix names. Raises SubmissionError."""


class _Stale(Exception):
    """A session turned out to be dead before any of the message was handed over; nothing is submitted."""


class _Watch:
    """The session that works on somebody's mail, to be cut from outside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: Dialogue | None = None
        self._aborted = False

    def use(self, session: Dialogue | None) -> None:
        with self._lock:
            self._session = session
            if self._aborted and session is not None:
                session.kill()

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._session is not None:
                self._session.kill()


@dataclass(slots=True)
class _Job:
    """One submission: what is sent, until when, and who watches it."""

    mail_from: str
    rcpt_to: Sequence[str]
    message: bytes
    envelope_id: str | None
    notify: str | None
    deadline: float
    watch: _Watch

    @property
    def what(self) -> str:
        return f"to {', '.join(self.rcpt_to)}"

    def use(self, session: Dialogue | None) -> None:
        self.watch.use(session)


class Submitter:
    """Hands mails to Postfix, several at a time, over a small pool of kept sessions.

    `way` is `sendmail` (then `sendmail` is the program, `config_directory` what is given to its -C, None for
    the system's own; -C needs root) or `smtp` (then `address` is host and port). `timeout`, in seconds,
    bounds one submission including the wait for a free session; a hanging process is killed by its id.
    A session serves `messages` mails; one unused for `idle_seconds` is closed, before Postfix does it.
    """

    def __init__(
        self,
        way: Literal["sendmail", "smtp"] = "sendmail",
        *,
        sendmail: str = "/usr/sbin/sendmail",
        config_directory: Path | None = None,
        address: tuple[str, int] | None = None,
        timeout: float = 20.0,
        sessions: int = 4,
        messages: int = 100,
        idle_seconds: float = 60.0,
    ) -> None:
        if way == "smtp" and address is None:
            raise ValueError("submission by smtp needs an address (host, port)")
        self._address = address if way == "smtp" else None
        self._command: Sequence[str] = (
            (sendmail, "-bs") if config_directory is None else (sendmail, "-C", str(config_directory), "-bs")
        )
        self._timeout = timeout
        self._messages = messages
        self._idle_seconds = idle_seconds
        self._pool = ThreadPoolExecutor(sessions, thread_name_prefix="mm4-submit")
        self._lock = threading.Lock()
        self._kept: list[Dialogue] = []
        self._closed = False
        self._sweep_due: asyncio.TimerHandle | None = None

    async def submit(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
        notify: str | None = None,
    ) -> str:  # fmt: skip
        """Hand one mail to Postfix and return the id that its 250 names ("" if it names none).

        Addresses are without brackets, `mail_from` "" is the null sender; of several recipients all get it or
        none; `message` has CRLF line ends and goes out as it is. `envelope_id` (letters, digits, dots) comes back as
        the ENVID of a bounce, by `smtp` only: by `sendmail` it did not (seen on 3.7); `notify` is that of RFC 3461, for
        example FAILURE. By `sendmail` the id that is returned is that of the maildrop file, which is not the later
        queue id; by `smtp` it is the queue id. Raises SubmissionError for whatever goes wrong. A call that is cancelled
        may still submit.
        """
        return await self.within(lambda submit: submit(mail_from, rcpt_to, message, envelope_id, notify))

    async def within(self, work: Callable[[Submit], T]) -> T:
        """Run `work` in one of the threads, and give it a function that submits there and then.

        It may do more than that, so that it need not go to another thread before and after. A session is cut when the
        time of one submission has passed since this call. Raises what `work` raises, SubmissionError once closed.
        """
        if self._closed:
            raise SubmissionError("the submitter is closed")
        watch = _Watch()

        def submit(
            mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
            notify: str | None = None,
        ) -> str:  # fmt: skip
            recipients = (rcpt_to,) if isinstance(rcpt_to, str) else tuple(rcpt_to)
            for text in (mail_from, *recipients):
                if not text.isascii() or not _ADDRESS.fullmatch(text):
                    raise SubmissionError(f"not an address that can be submitted: {text!a}")
            return self._run(_Job(mail_from, recipients, message, envelope_id, notify, deadline, watch))

        loop = asyncio.get_running_loop()
        deadline = time.monotonic() + self._timeout
        cut = loop.call_later(self._timeout + _GRACE, watch.abort)
        try:
            return await loop.run_in_executor(self._pool, work, submit)
        finally:
            cut.cancel()
            self._plan_sweep(loop)

    async def close(self) -> None:
        """Let running submissions end, then end all sessions."""
        self._closed = True
        if self._sweep_due is not None:
            self._sweep_due.cancel()
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._sweep, 0.0)

    # --- in a worker thread

    def _run(self, job: _Job) -> str:
        what = job.what
        try:
            session = self._take()
            if session is not None:
                with contextlib.suppress(_Stale):
                    return self._converse(job, session, kept=True)
            return self._converse(job, self._open(job), kept=False)
        except SubmissionError:
            raise
        except smtplib.SMTPResponseException as error:
            text = error.smtp_error
            said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
            reply = f"{error.smtp_code} {said}"
            if 500 <= error.smtp_code < 600:
                # Permanent for Postfix, but what refuses it is a setting, and that can be mended.
                log.error("Postfix refused a mail %s: %s", ascii(what), ascii(reply))
            raise SubmissionError(f"{what}: Postfix said {reply}") from error
        except TimeoutError as error:
            raise SubmissionError(f"{what}: no answer within {self._timeout:g} s") from error
        except (OSError, ValueError) as error:
            raise SubmissionError(f"{what}: {error}") from error

    def _converse(self, job: _Job, session: Dialogue, *, kept: bool) -> str:
        """Submit over a session; it is kept afterwards, or ended after any error."""
        job.use(session)
        done = False
        try:
            try:
                session.offer(
                    job.deadline, job.mail_from, job.rcpt_to, job.envelope_id, job.notify, not job.message.isascii()
                )
            except OSError as error:
                gone = not isinstance(error, smtplib.SMTPResponseException) or error.smtp_code in (421, -1)
                if kept and gone and time.monotonic() < job.deadline:
                    raise _Stale from error
                raise self._explained(session, job, error) from None
            try:
                text = session.hand_over(job.deadline, job.message)
            except OSError as error:
                raise self._explained(session, job, error) from None
            done = True
        finally:
            job.use(None)
            if done and session.messages < self._messages and not self._closed:
                with self._lock:
                    self._kept.append(session)
            else:
                session.close()
        match = _QUEUED_AS.search(text)
        return match[1] if match else ""

    def _open(self, job: _Job) -> Dialogue:
        if time.monotonic() >= job.deadline:
            raise SubmissionError(f"{job.what}: all sessions busy for {self._timeout:g} s")
        session = self._connect(job.deadline)
        job.use(session)
        try:
            session.open(job.deadline)
        except BaseException as error:
            job.use(None)
            failure = self._explained(session, job, error) if isinstance(error, OSError) else error
            session.close()
            raise failure from None
        return session

    def _connect(self, deadline: float) -> Dialogue:
        if self._address is not None:
            left = max(deadline - time.monotonic(), 0.001)
            return Dialogue(socket.create_connection(self._address, timeout=left), None)
        ours, theirs = socket.socketpair()
        try:
            # Its own session, so that a signal to our process group (Ctrl-C at a sandbox) cuts no submission.
            process = subprocess.Popen(
                self._command,
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return Dialogue(ours, process)

    def _explained(self, session: Dialogue, job: _Job, error: OSError) -> OSError | SubmissionError:
        """Kill what hangs; add what sendmail wrote to stderr, for only there stands the reason."""
        late = time.monotonic() >= job.deadline
        if isinstance(error, smtplib.SMTPResponseException) and error.smtp_code > 0 and not late:
            return error
        if session.process is None:
            return TimeoutError() if late else error
        if late:
            session.kill()
        complaint = session.complaint()
        if late:
            why = f"no answer within {self._timeout:g} s, killed"
        elif (status := session.process.poll()) is not None:
            why = f"ended with status {status}"
        else:
            why = "ended the session"
        return SubmissionError(f"{job.what}: {self._command[0]} {why}: {complaint or error}")

    # --- the pool

    def _take(self) -> Dialogue | None:
        # The last one kept first, so that in quiet times the others grow old and are closed.
        with self._lock:
            session = self._kept.pop() if self._kept else None
        if session is not None and time.monotonic() - session.used_at > self._idle_seconds:
            session.close()
            return self._take()
        return session

    def _plan_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._sweep_due is None and self._kept and not self._closed:
            self._sweep_due = loop.call_later(self._idle_seconds / 2, self._start_sweep, loop)

    def _start_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep_due = None
        if self._closed:
            return
        sweep = loop.run_in_executor(self._pool, self._sweep, self._idle_seconds)
        sweep.add_done_callback(lambda _done: self._plan_sweep(loop))

    def _sweep(self, older_than: float) -> None:
        """End the kept sessions that nobody used for so many seconds."""
        now = time.monotonic()
        with self._lock:
            old = [s for s in self._kept if now - s.used_at >= older_than]
            self._kept = [s for s in self._kept if now - s.used_at < older_than]
        for session in old:
            session.close()

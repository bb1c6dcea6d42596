"""The one module that touches pymilter: collect Postfix's events, apply a verdict, nothing else.

libmilter calls one message's events on different threads of its pool, hence no thread-local state here. The
body is asked for only where a rule of some peer needs it: that is agreed on anew with each connection, before its
client is known, and of a message that needs no reading one chunk comes. A callback that fails answers 451 and the peer
keeps the message; the verdict of a message whose header event failed is 451 too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import Milter

from ..gateway.logline import logline
from ..gateway.verdict import Action, Verdict
from ..protocol.errors import InternalError, Reply
from .fingerprints import fingerprint_of_client
from .runtime import Runtime
from .session import Session
from .sockets import FINGERPRINTS_SOCKET

__all__ = ["accept_nobody", "connection_class", "libmilter_version", "serve"]

log = logging.getLogger("mm4.milter")

# The C module; our own folder milter/ must not be mistaken for it.
libmilter: Any = Milter.milter

_ACTIONS = (
    Milter.CHGHDRS | Milter.ADDHDRS | Milter.ADDRCPT | Milter.ADDRCPT_PAR | Milter.DELRCPT | Milter.CHGFROM
    | Milter.QUARANTINE
)  # fmt: skip


def _guarded(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A fault of ours is temporary: 451, one log line, never a traceback and never a lost message."""

    @functools.wraps(callback)
    def guarded(self: Connection, *arguments: Any) -> Any:
        try:
            return callback(self, *arguments)
        except Exception as fault:
            self.session.fault = fault
            log.error(
                logline(queue_id=self.session.queue_id or "-", client=self.session.client, fault=repr(fault),
                        event=callback.__name__)
            )  # fmt: skip
            log.debug("fault", exc_info=True)
            return self.answer(InternalError.reply)

    return guarded


class Connection(Milter.Base):  # type: ignore[misc]
    """One milter connection, which is one SMTP client connection."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.session = Session(runtime)
        self.session.reads_bodies = False
        self.port = 0

    def negotiate(self, options: list[int]) -> int:
        """Agree with Postfix on what it shows us: where that fails it shows all, bodies too, and nobody notices."""
        agreed = int(super().negotiate(options))
        if agreed != Milter.CONTINUE:
            log.error(logline(fault="the options of the milter could not be agreed on", event="negotiate"))
        return agreed

    def setsymlist(self, stage: int, *macros: str) -> None:
        """Ask for macros, as text: pymilter 1.0.5 joins them to bytes, which its own C half refuses."""
        if self._actions & Milter.SETSYMLIST:
            self._ctx.setsymlist(stage, " ".join(macros))

    def answer(self, reply: Reply) -> int:
        """The reply as libmilter wants it. A 421 closes the session, so that the client comes back to a new process."""
        if reply.positive:
            return int(Milter.CONTINUE)
        self.setreply(str(reply.code), reply.enhanced, reply.text.replace("%", "%%"))
        return int(Milter.TEMPFAIL if reply.temporary else Milter.REJECT)

    @_guarded
    def connect(self, hostname: str, family: int, hostaddr: Any) -> int:
        self.port = hostaddr[1] if isinstance(hostaddr, tuple) else 0
        self.session.connect(hostaddr[0] if isinstance(hostaddr, tuple) else str(hostaddr or ""))
        return int(Milter.CONTINUE)

    # Asked for by name: Postfix's own list for MAIL has no certificate, and an operator's may lack the login.
    @Milter.symlist("{cert_subject}", "{auth_authen}", "{tls_version}")  # type: ignore[untyped-decorator]
    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    @_guarded
    def envfrom(self, path: bytes, *parameters: bytes) -> int:
        runtime, session = self.runtime, self.session
        fingerprint = None
        # One configuration for the question and for the answer: a reload may come between.
        router = runtime.router
        if router.pinned and self.getsymval("{tls_version}"):
            asked = os.path.join(router.config.folders.sockets, FINGERPRINTS_SOCKET)
            fingerprint = fingerprint_of_client(asked, session.client, self.port)
        session.identify(self.getsymval("{cert_subject}"), self.getsymval("{auth_authen}"), fingerprint)
        return self.answer(session.mail(_text(path), [_text(p) for p in parameters], router))

    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    @_guarded
    def envrcpt(self, path: bytes, *parameters: bytes) -> int:
        return self.answer(self.session.rcpt(_text(path)))

    @Milter.noreply  # type: ignore[untyped-decorator]
    def data(self) -> int:
        # The queue id does not exist before the first recipient is accepted. Nothing is judged here, so that the client
        # need not wait for us before it sends.
        try:
            self.session.queue_id = self.getsymval("i") or ""
        except Exception as fault:
            self.session.fault = fault
        return int(Milter.CONTINUE)

    @Milter.decode("bytes")  # type: ignore[untyped-decorator]
    @Milter.noreply  # type: ignore[untyped-decorator]
    def header(self, name: str, value: bytes) -> int:
        try:
            self.session.header(name, value)
        except Exception as fault:
            self.session.fault = fault
        return int(Milter.CONTINUE)

    @Milter.noreply  # type: ignore[untyped-decorator]
    def eoh(self) -> int:
        # Asked for, though nothing is done here: where a message has no header at all and this event is not negotiated,
        # libmilter takes the end of the message for out of turn and never answers; Postfix waits for a minute.
        return int(Milter.CONTINUE)

    @_guarded
    def eom(self) -> int:
        self.session.queue_id = self.getsymval("i") or self.session.queue_id
        verdict = self.session.verdict()
        if verdict.action in (Action.ACCEPT, Action.HOLD):
            self._apply(verdict)
            return int(Milter.ACCEPT)
        if verdict.action is Action.DISCARD:
            return int(Milter.DISCARD)
        return self.answer(verdict.reply)

    def abort(self) -> int:
        self.session.end()
        return int(Milter.CONTINUE)

    def close(self) -> int:
        self.session.close()
        return int(Milter.CONTINUE)

    def _apply(self, verdict: Verdict) -> None:
        """Postfix takes these one by one and drops them all if the message is refused after all."""
        for edit in verdict.edits:
            if edit.op == "add":
                self.addheader(edit.header, edit.value)
            else:
                self.chgheader(edit.header, edit.occurrence, edit.value if edit.op == "change" else "")
        for recipient in verdict.deleted:
            self.delrcpt(recipient)
        for address, parameters in verdict.added:
            self.addrcpt(f"<{address}>", parameters)
        if verdict.mail_from is not None:
            self.chgfrom(f"<{verdict.mail_from}>", verdict.mail_from_parameters)
        if verdict.action is Action.HOLD:
            # Postfix cuts it at 100 bytes.
            self.quarantine(f"mm4: {verdict.reason or 'held'}")


class ReadingConnection(Connection):
    """A connection that has bodies shown."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.session.reads_bodies = True

    @classmethod
    def protocol_mask(cls) -> int:
        # pymilter finds out by looking for a body(), but keeps what it found for the class above.
        return int(super().protocol_mask()) | int(Milter.P_NOBODY | Milter.P_NR_BODY)

    @_guarded
    def body(self, chunk: bytes) -> int:
        wanted = self.session.body(chunk)
        return int(Milter.CONTINUE if wanted or not self._protocol & Milter.P_SKIP else Milter.SKIP)


def _text(value: bytes) -> str:
    # Latin-1 keeps every byte: what is given back to delrcpt must be the very string that was seen.
    return value.decode("latin-1")


def connection_class(runtime: Runtime) -> Callable[[], Connection]:
    """What serves a connection that begins now."""
    return functools.partial(ReadingConnection if runtime.router.reads_bodies else Connection, runtime)


def libmilter_version() -> str:
    """libmilter's version, as the library itself says it."""
    return ".".join(str(part) for part in libmilter.getversion())


def serve(descriptor: int, runtime: Runtime) -> None:
    """Serve milter connections on a listening, non-blocking socket until libmilter stops. One call a process."""
    os.set_inheritable(descriptor, False)

    def connection() -> Connection:
        """Chosen for each new one, so that a reload needs no new process."""
        return connection_class(runtime)()

    Milter.factory = connection
    Milter.set_flags(_ACTIONS)
    libmilter.set_exception_policy(libmilter.TEMPFAIL)
    libmilter.setbacklog(200)
    Milter.runmilter("mm4", f"fd:{descriptor}", rmsock=False)


def accept_nobody(descriptor: int) -> None:
    """Leave new connections to other processes with the same socket; those that are open go on.

    libmilter has no call for this. It finds, in the socket's place, one to which nobody can connect: its name is gone.
    """
    with (
        contextlib.suppress(OSError),  # no room for a name: whoever comes is served, as before
        tempfile.TemporaryDirectory(prefix="mm4-") as folder,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.bind(f"{folder}/silent")
        silent.listen(0)
        silent.setblocking(False)
        os.dup2(silent.fileno(), descriptor, inheritable=False)


def stop() -> None:
    """Make `serve` return, within libmilter's poll interval of 5 s."""
    libmilter.stop()

"""The one module that touches pymilter: collect Postfix's events, apply a verdict, nothing else.

libmilter calls one message's events on different threads of its pool, hence no thread-local state here. The
body is never asked for. A callback that fails answers 451 and the peer keeps the message; the verdict of a
message whose header event failed is 451 too.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import Milter

from ..gateway.logline import logline
from ..gateway.verdict import Action, Verdict
from ..protocol.errors import InternalError, Reply
from .fingerprints import FINGERPRINTS_SOCKET, fingerprint_of_client
from .session import Runtime, Session

__all__ = ["libmilter_version", "serve"]

log = logging.getLogger("mm4.milter")

# The C module; our own folder milter/ must not be mistaken for it.
libmilter: Any = Milter.milter

_ACTIONS = Milter.CHGHDRS | Milter.ADDHDRS | Milter.ADDRCPT | Milter.ADDRCPT_PAR | Milter.DELRCPT | Milter.CHGFROM


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

    runtime: Runtime

    def __init__(self) -> None:
        self.session = Session(self.runtime)
        self.port = 0

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
        if runtime.router.pinned and self.getsymval("{tls_version}"):
            socket = os.path.join(runtime.router.config.folders.sockets, FINGERPRINTS_SOCKET)
            fingerprint = fingerprint_of_client(socket, session.client, self.port)
        session.identify(self.getsymval("{cert_subject}"), self.getsymval("{auth_authen}"), fingerprint)
        return self.answer(self.session.mail(_text(path), [_text(p) for p in parameters]))

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
        if verdict.action is Action.ACCEPT:
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


def _text(value: bytes) -> str:
    # Latin-1 keeps every byte: what is given back to delrcpt must be the very string that was seen.
    return value.decode("latin-1")


def libmilter_version() -> str:
    """libmilter's version, as the library itself says it."""
    return ".".join(str(part) for part in libmilter.getversion())


def serve(descriptor: int, runtime: Runtime) -> None:
    """Serve milter connections on a listening, non-blocking socket until libmilter stops. One call a process."""
    os.set_inheritable(descriptor, False)
    bound = type("BoundConnection", (Connection,), {"runtime": runtime})
    Milter.factory = bound
    Milter.set_flags(_ACTIONS)
    libmilter.set_exception_policy(libmilter.TEMPFAIL)
    libmilter.setbacklog(200)
    Milter.runmilter("mm4", f"fd:{descriptor}", rmsock=False)


def stop() -> None:
    """Make `serve` return, within libmilter's poll interval of 5 s."""
    libmilter.stop()

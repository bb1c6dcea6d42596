"""One SMTP dialogue with Postfix, as a client: over a socket, or with the process of a `sendmail -bs`."""

from __future__ import annotations

import contextlib
import os
import re
import smtplib
import socket
import subprocess
import time
from collections.abc import Sequence

__all__ = ["Dialogue"]

# An address literal passes reject_non_fqdn_helo_hostname and its like, which a private line inherits.
_HELO = "[127.0.0.1]"


class Dialogue:
    """One SMTP session and, for `sendmail -bs`, its process. Used by one thread at a time; `kill` by any."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self._socket = sock
        self.process = process
        self.messages = 0
        self.used_at = time.monotonic()
        self._pipelining = self._dsn = False
        # Without a host smtplib connects nowhere; it only needs the socket to hold its dialogue over.
        self._smtp = smtplib.SMTP(local_hostname=_HELO)
        self._smtp.sock = sock

    def step(self, deadline: float, command: str | bytes | None, *expected: int) -> str:
        """Send one command (None: only read) and return the text of the expected reply.

        Raises smtplib.SMTPResponseException for another reply, OSError (SMTPException is one) when the
        session is gone or the deadline, a monotonic time, is over.
        """
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        if command is not None:
            self._smtp.send(command if isinstance(command, bytes) else f"{command}\r\n".encode())
        code, text = self._smtp.getreply()
        if code not in expected:
            raise smtplib.SMTPResponseException(code, text)
        return text.decode("utf-8", "replace")

    def open(self, deadline: float) -> None:
        """Read the greeting and say EHLO; as `step` raises."""
        self.step(deadline, None, 220)
        offered = self.step(deadline, f"EHLO {_HELO}", 250).split()
        self._pipelining, self._dsn = "PIPELINING" in offered, "DSN" in offered
        self._eight = "8BITMIME" in offered

    def offer(
        self, deadline: float, mail_from: str, rcpt_to: Sequence[str], envelope_id: str | None, notify: str | None,
        eight: bool,
    ) -> None:  # fmt: skip
        """MAIL, every RCPT and DATA: all that can fail without a byte of the message being handed over."""
        # Where DSN is not offered a bounce is told by the ids in what it returns.
        dsn = f" RET=HDRS ENVID={envelope_id}" if envelope_id and self._dsn else ""
        body = " BODY=8BITMIME" if eight and self._eight else ""
        asked = f" NOTIFY={notify}" if notify and self._dsn else ""
        commands = [
            (f"MAIL FROM:<{mail_from}>{dsn}{body}", (250,)),
            *((f"RCPT TO:<{recipient}>{asked}", (250, 251)) for recipient in rcpt_to),
            ("DATA", (354,)),
        ]
        if self._pipelining:
            # In one write: each wait for a reply is a turn for the interpreter's other threads. Whatever is refused,
            # the session is cut without the final dot, and so without a message.
            together: bytes | None = "".join(f"{command}\r\n" for command, _ in commands).encode()
            for _, expected in commands:
                self.step(deadline, together, *expected)
                together = None
            return
        for line, expected in commands:
            self.step(deadline, line, *expected)

    def hand_over(self, deadline: float, message: bytes) -> str:
        """Send the message and return what the final 250 says."""
        text = self.step(deadline, _stuffed(message), 250)
        self.messages += 1
        self.used_at = time.monotonic()
        return text

    def kill(self) -> None:
        """Cut the session at once, from whatever thread. Postfix drops what has no final dot."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self.process is not None:
            with contextlib.suppress(OSError):
                self.process.kill()

    def close(self) -> None:
        """End the session; a process that does not end within a second is killed. Leaves no zombie."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(1.0)
            self._socket.sendall(b"QUIT\r\n")
            self._socket.shutdown(socket.SHUT_WR)
        if self.process is not None:
            try:
                self.process.wait(1.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if self.process.stderr is not None:
                self.process.stderr.close()
        self._smtp.close()
        self._socket.close()

    def complaint(self) -> str:
        """Return what a killed or ended process has written to stderr, "" for SMTP."""
        if self.process is None or self.process.stderr is None:
            return ""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.wait(1.0)
            # A child of the process may still hold the pipe, so that waiting for its EOF could take for ever.
            os.set_blocking(self.process.stderr.fileno(), False)
            return " ".join((self.process.stderr.read(4096) or b"").decode("utf-8", "replace").split())
        return ""


def _stuffed(message: bytes) -> bytes:
    # After a bare LF too: Postfix takes it for a line end, and a lone dot there would end the message early.
    body = re.sub(rb"(?m)^\.", b"..", message)
    return body + (b".\r\n" if body.endswith(b"\r\n") else b"\r\n.\r\n")

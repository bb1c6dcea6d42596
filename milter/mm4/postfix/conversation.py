"""An SMTP client for looking at somebody's server: bounded in time and in what it reads, whatever that server does.

smtplib has a timeout for each read and none for an answer: who sends a byte a second, or lines without end, keeps it
for ever. Here every answer has one deadline and a largest size. It sends no message.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl
import time
from dataclasses import dataclass

__all__ = ["Broken", "Conversation", "Reply"]

_LONGEST_LINE = 4096
_MOST_LINES = 100
_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?\Z", re.DOTALL)


class Broken(Exception):
    """The conversation cannot go on; the text says what happened. `alert` is the TLS library's word for it, if any."""

    def __init__(self, text: str, alert: str | None = None, number: int | None = None) -> None:
        super().__init__(text)
        self.alert = alert
        self.number = number
        """The errno, where the system had one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered: code and lines, as they stand."""

    code: int
    lines: tuple[str, ...]

    @property
    def positive(self) -> bool:
        """Whether it is a 2xx or 3xx."""
        return self.code < 400

    def __str__(self) -> str:
        return f"{self.code} {' / '.join(self.lines)}".strip()


class Conversation:
    """One connection to `address`, from `source` where it is said. Every method raises Broken."""

    def __init__(self, address: str, port: int, source: str | None, seconds: float) -> None:
        self._seconds = seconds
        self._read = b""
        try:
            self._socket: socket.socket = socket.create_connection(
                (address, port), timeout=seconds, source_address=(source, 0) if source else None
            )
        except OSError as error:
            raise self._broken(error) from None

    def close(self) -> None:
        """Leave nothing open."""
        self._socket.close()

    @property
    def here(self) -> str:
        """The address that we send from."""
        return str(self._socket.getsockname()[0])

    @property
    def tls(self) -> ssl.SSLSocket | None:
        """The connection, once TLS runs on it."""
        return self._socket if isinstance(self._socket, ssl.SSLSocket) else None

    def command(self, line: str) -> Reply:
        """Say a line, and hear the answer."""
        try:
            self._socket.settimeout(self._seconds)
            self._socket.sendall(line.encode("utf-8", "surrogateescape") + b"\r\n")
        except OSError as error:
            raise self._broken(error) from None
        return self.answer()

    def answer(self) -> Reply:
        """The next answer."""
        end = time.monotonic() + self._seconds
        lines: list[str] = []
        while True:
            line = self._line(end)
            match = _LINE.match(line)
            if match is None:
                raise Broken(f"{line[:80].decode('ascii', 'replace')!r} is no SMTP reply")
            lines.append((match[3] or b"").decode("utf-8", "replace"))
            if match[2] != b"-":
                return Reply(int(match[1]), tuple(lines))
            if len(lines) == _MOST_LINES:
                raise Broken(f"a reply of more than {_MOST_LINES} lines")

    def start_tls(self, context: ssl.SSLContext) -> None:
        """TLS from here on."""
        if self._read:
            raise Broken("it said more before TLS began: what is in clear is not its own")
        try:
            self._socket.settimeout(self._seconds)
            # Postfix names no server (smtp_tls_servername is empty), so neither do we.
            self._socket = context.wrap_socket(self._socket)
        except (OSError, ValueError) as error:
            raise self._broken(error) from None

    def _line(self, end: float) -> bytes:
        while b"\n" not in self._read:
            if len(self._read) > _LONGEST_LINE:
                raise Broken(f"a line of more than {_LONGEST_LINE} bytes")
            left = end - time.monotonic()
            if left <= 0:
                raise self._broken(TimeoutError())
            try:
                self._socket.settimeout(left)
                part = self._socket.recv(4096)
            except (OSError, ValueError) as error:
                raise self._broken(error) from None
            if not part:
                raise Broken("it closed the connection")
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.rstrip(b"\r")

    def _broken(self, error: Exception) -> Broken:
        match error:
            case ssl.SSLCertVerificationError():
                return Broken(error.verify_message or "the certificate is not trusted", "CERTIFICATE")
            case ssl.SSLEOFError() | ConnectionResetError() | BrokenPipeError():
                return Broken("it cut the connection")
            case ssl.SSLError() if error.reason:
                return Broken(f"TLS: {error.reason.replace('_', ' ').lower()}", error.reason)
            case TimeoutError():
                return Broken(f"no answer within {self._seconds:g} s", number=errno.ETIMEDOUT)
            case OSError():
                return Broken(error.strerror or type(error).__name__, number=error.errno)
            case _:
                return Broken(str(error) or type(error).__name__)

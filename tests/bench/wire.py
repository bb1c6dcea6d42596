"""The milter protocol from Postfix's side, for many sessions in one thread: a milter is measured without a Postfix.

What is sent is what Postfix 3 sends, packet for packet, version 6: one connection for an SMTP session, macros as the
milter asked for them, an abort after each message. The packets of a message are made once, with a mark in
place of its number, which is as long as the number; what is left for the time that is measured is next to nothing.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .sender import Refused

__all__ = ["DIGITS", "MARK", "Conversation", "Negotiated", "Outcome", "conversation", "drive", "negotiate"]

DIGITS = 7
MARK = "#" * DIGITS
"""Stands for the message's number, in addresses and in headers."""

# libmilter/mfdef.h and mfapi.h of Sendmail 8.17.
_OFFER = (6, 0x1FF, 0x1FFFFF)
"""Version, actions and protocol flags that Postfix 3 offers."""
_STAGES = "CHMRTEN"
"""The command of each SMFIM_ number, by which macros are asked for."""
_NOT_SENT = {"C": 0x1, "H": 0x2, "M": 0x4, "R": 0x8, "B": 0x10, "L": 0x20, "N": 0x40, "T": 0x200}
_NO_REPLY = {"L": 0x80, "C": 0x1000, "H": 0x2000, "M": 0x4000, "R": 0x8000, "T": 0x10000, "N": 0x40000, "B": 0x80000}
_MACROS = {
    "C": "j {daemon_name} {daemon_addr} v _", "H": "{tls_version} {cipher} {cipher_bits} {cert_subject} {cert_issuer}",
    "M": "i {auth_type} {auth_authen} {auth_author} {mail_addr} {mail_host} {mail_mailer}",
    "R": "i {rcpt_addr} {rcpt_host} {rcpt_mailer}", "T": "i", "N": "i", "E": "i",
}  # fmt: skip
"""Postfix's own lists, for a stage at which the milter does not ask: postconf -d, milter_*_macros."""
_CHUNK = 65535
_ABORT, _QUIT = (struct.pack("!I", 1) + letter for letter in (b"A", b"Q"))
_CONTINUE = struct.pack("!I", 1) + b"c"
_SECONDS = 120.0  # without any reply at all: a milter that is gone
_Event = tuple[str, Sequence[str | bytes]]
"""A command and what goes with it; text ends in NUL."""


@dataclass(frozen=True)
class Negotiated:
    """What a milter answered to the offer: protocol flags, and the macros it wants by command."""

    flags: int
    actions: int
    macros: Mapping[str, str]
    packet: bytes
    """The whole answer, which has to come again on each connection."""


@dataclass(frozen=True)
class _Step:
    """Packets that go out at once, and the command whose reply is waited for."""

    data: bytes
    command: str


@dataclass(frozen=True)
class Conversation:
    """What goes over a connection: at its beginning, and for each message."""

    opening: Sequence[_Step]
    message: Sequence[_Step]
    answer: bytes


@dataclass
class Outcome:
    """What was seen of the messages of one run."""

    messages: int = 0
    seconds: float = 0.0
    eom: list[float] = field(default_factory=list)
    """Milliseconds of each message, from the writing of its headers and end until the last byte of the verdict."""
    tokens: int = 0
    """Messages to which the milter added a recipient."""

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.messages / self.seconds


def _packet(command: str, *parts: str | bytes) -> bytes:
    data = b"".join((part.encode("latin-1") + b"\0") if isinstance(part, str) else part for part in parts)
    return struct.pack("!I", len(data) + 1) + command.encode() + data


_OFFERED = _packet("O", struct.pack("!III", *_OFFER))


def negotiate(path: Path) -> Negotiated:
    """Ask the milter behind a UNIX socket what it wants. Raises Refused, OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_SECONDS)
        client.connect(str(path))
        client.sendall(_OFFERED)
        got = b""
        while len(got) < 4 or len(got) < 4 + struct.unpack("!I", got[:4])[0]:
            part = client.recv(65536)
            if not part:
                raise Refused(f"{path}: hung up at the negotiation")
            got += part
        client.sendall(_QUIT)
    if got[4:5] != b"O" or len(got) < 17:
        raise Refused(f"{path}: no milter: {got[:20]!r}")
    version, actions, flags = struct.unpack("!III", got[5:17])
    if version != _OFFER[0]:
        raise Refused(f"{path}: version {version} of the protocol, expected {_OFFER[0]}")
    macros = dict(_MACROS)
    rest = got[17:]
    while len(rest) > 4:
        names, _, more = rest[4:].partition(b"\0")
        macros[_STAGES[struct.unpack("!I", rest[:4])[0]]] = names.decode()
        rest = more
    return Negotiated(flags, actions, macros, got)


def conversation(
    agreed: Negotiated,
    client: str,
    mail_from: str,
    rcpt_to: str,
    headers: Iterable[tuple[str, bytes]],
    body: bytes = b"",
) -> Conversation:
    """The packets for messages of one form from an IPv4 client; MARK stands where its number has to stand."""
    queue_id = f"4c{MARK}z"
    values = {
        "j": "mms.gw.example", "{daemon_name}": "mms.gw.example", "{daemon_addr}": "127.0.0.1", "v": "Postfix 3.7.11",
        "_": f"{client} [{client}]", "i": queue_id, "{mail_addr}": mail_from, "{mail_mailer}": "local",
        "{mail_host}": mail_from.rpartition("@")[2], "{rcpt_addr}": rcpt_to, "{rcpt_mailer}": "local",
        "{rcpt_host}": rcpt_to.rpartition("@")[2],
    }  # fmt: skip
    port = struct.pack("!H", 40000)
    opening: list[_Event] = [("C", [client, b"4" + port, client]), ("H", ["bench.north.example"])]
    lines: list[_Event] = [("L", [name, value.removeprefix(b" ") + b"\0"]) for name, value in headers]
    chunks: list[_Event] = [("B", [body[start : start + _CHUNK]]) for start in range(0, len(body), _CHUNK)]
    message: list[_Event] = [
        ("M", [f"<{mail_from}>", f"SIZE={len(body) + 1300}"]), ("R", [f"<{rcpt_to}>"]), ("T", []),
        *lines, ("N", []), *chunks, ("E", []),
    ]  # fmt: skip

    def steps(events: Iterable[_Event]) -> Iterator[_Step]:
        waiting = b""
        for command, parts in events:
            if agreed.flags & _NOT_SENT.get(command, 0):
                continue
            known = [(name, values[name]) for name in agreed.macros.get(command, "").split() if name in values]
            if command in _STAGES:
                waiting += _packet("D", command.encode(), *(text for pair in known for text in pair))
            waiting += _packet(command, *parts)
            if not agreed.flags & _NO_REPLY.get(command, 0):
                yield _Step(waiting, command)
                waiting = b""
        if waiting:
            raise ValueError("a milter that answers nothing at the end of what is sent to it")

    return Conversation([_Step(_OFFERED, "O"), *steps(opening)], list(steps(message)), agreed.packet)


@dataclass(slots=True)
class _Session:
    """One connection after the other, or one that is kept; and where its message is."""

    socket: socket.socket | None = None
    number: bytes = b""
    steps: deque[_Step] = field(default_factory=deque)
    waits: str = ""
    """The command whose reply is due."""
    read: bytes = b""
    token: bool = False
    began: float = 0.0


class _Drive:
    """All sessions of one run."""

    def __init__(
        self, path: Path, what: Conversation, numbers: Iterable[int], *, keep: bool, interval: float
    ) -> None:
        self.path = str(path)
        self.what = what
        self.numbers = iter(numbers)
        self.keep = keep
        self.interval = interval
        self.poll = select.epoll()
        self.busy: dict[int, _Session] = {}
        self.idle: deque[_Session] = deque()
        self.outcome = Outcome()
        self.due = 0.0
        self.next: bytes | None = None

    def run(self, sessions: int) -> Outcome:
        self.idle.extend(_Session() for _ in range(sessions))
        begun = self.due = time.perf_counter()
        self._advance()
        while self.next is not None or self.busy:
            self._begin()
            wait = _SECONDS
            if self.next is not None and self.idle:
                wait = max(0.0, self.due - time.perf_counter())
            events = self.poll.poll(wait)
            if not events and wait == _SECONDS:
                raise Refused(f"{self.path}: no reply for {_SECONDS:.0f} s")
            for descriptor, _ in events:
                self._heard(self.busy[descriptor])
        self.outcome.seconds = time.perf_counter() - begun
        return self.outcome

    def close(self) -> None:
        for session in [*self.busy.values(), *self.idle]:
            if session.socket is not None:
                session.socket.close()
        self.poll.close()

    def _advance(self) -> None:
        number = next(self.numbers, None)
        self.next = None if number is None else b"%0*d" % (DIGITS, number)

    def _begin(self) -> None:
        """Begin every message that is due and for which a session is free."""
        while self.idle and self.next is not None and (not self.interval or self.due <= time.perf_counter()):
            session = self.idle.popleft()
            session.number = self.next
            self.due += self.interval
            self._advance()
            session.token = False
            session.read = b""
            before = b""
            if session.socket is None:
                session.socket = socket.socket(socket.AF_UNIX)
                session.socket.connect(self.path)
                # In the kernel: Python's own timeout is a further system call for each.
                session.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SECONDS), 0))
                self.poll.register(session.socket, select.EPOLLIN)
                session.steps = deque((*self.what.opening, *self.what.message))
            else:
                before = _ABORT
                session.steps = deque(self.what.message)
            self.busy[session.socket.fileno()] = session
            self._say(session, before)

    def _say(self, session: _Session, before: bytes = b"") -> None:
        step = session.steps.popleft()
        session.waits = step.command
        data = before + step.data.replace(MARK.encode(), session.number)
        if step.command == "E":
            session.began = time.perf_counter()
        assert session.socket is not None
        try:
            session.socket.sendall(data)
        except OSError as error:
            raise Refused(f"{self.path}: {error} at {step.command} of message {session.number.decode()}") from error

    def _heard(self, session: _Session) -> None:
        assert session.socket is not None
        try:
            data = session.socket.recv(65536)
        except ConnectionError:  # what was sent was not read any more
            data = b""
        if not data:
            raise Refused(f"{self.path}: hung up at {session.waits} of message {session.number.decode()}")
        if session.waits == "E":
            self._verdict(session, session.read + data)
            return
        read = session.read + data
        due = self.what.answer if session.waits == "O" else _CONTINUE
        if read == due:
            session.read = b""
            self._say(session)
        elif due.startswith(read):
            session.read = read
        else:
            raise Refused(
                f"{self.path}: {read[4:200]!r} to {session.waits} of message {session.number.decode()}, "
                "expected continue"
            )  # fmt: skip

    def _verdict(self, session: _Session, read: bytes) -> None:
        """What came at the end of a message: edits, and the reply that ends it."""
        at = 0
        while len(read) >= at + 4:
            end = at + 4 + int.from_bytes(read[at : at + 4], "big")
            if len(read) < end:
                break
            letter = read[at + 4 : at + 5]
            at = end
            if letter in b"ac":
                self._done(session)
                return
            if letter in b"rtdy":
                said = read[end - 200 : end].decode("latin-1", "replace")
                raise Refused(f"{self.path}: message {session.number.decode()} got {letter.decode()}: {said!r}")
            session.token = session.token or letter in b"+2"
        session.read = read[at:]

    def _done(self, session: _Session) -> None:
        outcome = self.outcome
        outcome.eom.append(1000 * (time.perf_counter() - session.began))
        outcome.messages += 1
        outcome.tokens += session.token
        assert session.socket is not None
        del self.busy[session.socket.fileno()]
        if not self.keep or self.next is None:
            with contextlib.suppress(ConnectionError):  # it may hang up first
                session.socket.sendall(_ABORT + _QUIT)
            self.poll.unregister(session.socket)
            session.socket.close()
            session.socket = None
        self.idle.append(session)


def drive(
    path: Path, what: Conversation, numbers: Iterable[int], sessions: int, *, keep: bool = False, rate: float = 0.0
) -> Outcome:
    """Send the messages with these numbers to the milter at `path`, so many at a time.

    With `keep` a connection carries message after message, else one. `rate`: no more than so many a second begin, else
    as many as it takes. Every message has to be accepted. Raises Refused at the first that is not.
    """
    run = _Drive(path, what, numbers, keep=keep, interval=1 / rate if rate else 0.0)
    try:
        return run.run(sessions)
    finally:
        run.close()

"""Many SMTP sessions from one thread: the peers, as far as the bench needs them.

smtp-source cannot give every message its own ids, and equal ids would be duplicates to the gateway. A stream sends
as smtp-source does, with a number of connections at a time, one message each, a command after the reply to the last;
or as Postfix does towards a busy next hop, over kept connections and pipelined. What the sender can do alone is
measured in each bench, so that nobody has to believe that it is not what limits the rest.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Item", "Refused", "Stream", "send"]

_FINAL = re.compile(rb"(\d{3})(?: [^\r\n]*)?\r?\n")
_QUEUED = re.compile(rb"queued as (\w+)")
_SECONDS = 120.0  # without any reply at all: a server that is gone


class Refused(Exception):
    """A server said something else than was expected, or nothing."""


@dataclass(frozen=True, slots=True)
class Item:
    """One message: its envelope, its own header block, and the rest that it shares with others (ending in CRLF)."""

    mail_from: str
    rcpt_to: str
    head: bytes
    rest: bytes = b""


class Stream:
    """Items that go to `server` (address:port) from the address `source`, over so many connections at a time.

    With `keep` a connection carries message after message, pipelined, else one, a command at a time.
    """

    def __init__(self, server: str, source: str, items: Iterable[Item], sessions: int, *, keep: bool) -> None:
        host, _, port = server.rpartition(":")
        self.server = (host, int(port))
        self.source = source
        self.items = deque(items)
        self.sessions = min(sessions, len(self.items))
        self.keep = keep
        self.queue_ids: list[str] = []


class _Session:
    """One connection after the other; `expect` holds the codes of the replies that are due, in their order."""

    def __init__(self, stream: Stream, poll: select.epoll, sessions: dict[int, _Session]) -> None:
        self.stream = stream
        self.poll = poll
        self.sessions = sessions
        self.item: Item | None = None
        self.connect()

    def connect(self) -> None:
        """Begin a connection."""
        self.state = "greeting"
        self.expect: deque[bytes] = deque([b"220"])
        self.out: deque[memoryview] = deque()
        self.read = b""
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.bind((self.stream.source, 0))
        self.socket.connect_ex(self.stream.server)
        self.sessions[self.socket.fileno()] = self
        self.poll.register(self.socket, select.EPOLLIN)

    def put(self, *parts: bytes) -> None:
        """Write bytes; what does not go at once goes when the socket takes more."""
        self.out.extend(memoryview(part) for part in parts if part)
        if not self.flush():
            self.poll.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)

    def flush(self) -> bool:
        """True when nothing waits to be written any more."""
        while self.out:
            try:
                sent = self.socket.sendmsg(self.out)
            except BlockingIOError:
                return False
            while sent and self.out:
                part = self.out[0]
                if sent >= len(part):
                    sent -= len(part)
                    self.out.popleft()
                else:
                    self.out[0] = part[sent:]
                    sent = 0
        return True

    def replies(self) -> list[bytes]:
        """Final lines of the replies that came in, each checked against what was due."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError as error:
            raise Refused(f"{self.stream.server}: {error} in state {self.state}") from error
        if not data:
            raise Refused(f"{self.stream.server}: closed the session in state {self.state}")
        *lines, self.read = (self.read + data).split(b"\n")
        final = []
        for line in lines:
            match = _FINAL.match(line + b"\n")
            if match is None:
                continue  # 250-EXTENSION
            due = self.expect.popleft() if self.expect else b"nothing"
            if match[1] != due:
                said = line.decode("latin-1").strip()
                raise Refused(f"{self.stream.server}: {said!r} in state {self.state}, expected {due.decode()}")
            final.append(line)
        return final

    def advance(self, line: bytes) -> int:
        """Say what follows the last reply that was due; the number of messages that are done by it."""
        match self.state:
            case "greeting":
                self.state, self.expect = "ehlo", deque([b"250"])
                self.put(b"EHLO bench.north.example\r\n")
            case "ehlo":
                self.state = "idle"
                self.begin()
            case "mail":
                assert self.item is not None
                self.state, self.expect = "rcpt", deque([b"250"])
                self.put(f"RCPT TO:<{self.item.rcpt_to}>\r\n".encode())
            case "rcpt":
                self.state, self.expect = "envelope", deque([b"354"])
                self.put(b"DATA\r\n")
            case "envelope":
                assert self.item is not None
                self.state, self.expect = "data", deque([b"250"])
                self.put(self.item.head, self.item.rest, b".\r\n")
            case "data":
                found = _QUEUED.search(line)
                self.stream.queue_ids.append(found[1].decode() if found else "")
                if self.stream.keep and self.stream.items:
                    self.state = "idle"
                    self.begin()
                else:
                    self.end()
                    if self.stream.items:
                        self.connect()
                return 1
        return 0

    def begin(self) -> None:
        """Begin the stream's next message; where others have taken the last one, leave."""
        if not self.stream.items:
            self.end()
            return
        item = self.item = self.stream.items.popleft()
        mail = f"MAIL FROM:<{item.mail_from}>\r\n"
        if self.stream.keep:
            self.state, self.expect = "envelope", deque([b"250", b"250", b"354"])
            self.put(f"{mail}RCPT TO:<{item.rcpt_to}>\r\nDATA\r\n".encode())
        else:
            self.state, self.expect = "mail", deque([b"250"])
            self.put(mail.encode())

    def end(self) -> None:
        """Say QUIT and hang up."""
        self.put(b"QUIT\r\n")
        self.close()

    def close(self) -> None:
        """Hang up."""
        if self.socket.fileno() >= 0:
            del self.sessions[self.socket.fileno()]
            self.poll.unregister(self.socket)
            self.socket.close()


def send(*streams: Stream) -> float:
    """Send every stream, all at the same time; the moment (monotonic) of the first connection.

    Queue ids stand in each stream afterwards. Raises Refused at the first reply that is not the expected one.
    """
    poll = select.epoll()
    sessions: dict[int, _Session] = {}
    left = sum(len(stream.items) for stream in streams)
    begun = time.monotonic()
    try:
        for stream in streams:
            for _ in range(stream.sessions):
                _Session(stream, poll, sessions)
        while left:
            events = poll.poll(_SECONDS)
            if not events:
                raise Refused(f"no reply for {_SECONDS:.0f} s")
            for descriptor, event in events:
                session = sessions[descriptor]
                if event & select.EPOLLOUT and session.flush():
                    poll.modify(descriptor, select.EPOLLIN)
                if event & ~select.EPOLLOUT:
                    for line in session.replies():
                        if not session.expect:
                            left -= session.advance(line)
        return begun
    finally:
        for session in list(sessions.values()):
            session.close()
        poll.close()

"""The sockets of `mm4 serve` by their names, and the questions that show whether somebody answers there.

Imports next to nothing: whoever watches over a gateway asks every few seconds.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "FINGERPRINTS_SOCKET", "MAILDIR_SOCKET", "MILTER_SOCKET", "RESPONDER_SOCKET", "Probe", "connected", "greeting",
    "negotiate", "options", "question", "receive", "send",
]  # fmt: skip

MILTER_SOCKET = "milter.sock"
RESPONDER_SOCKET = "responder.sock"
MAILDIR_SOCKET = "maildir.sock"
FINGERPRINTS_SOCKET = "fingerprints.sock"

_OPTNEG = b"O"


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: what was asked, whether the answer is good, and what was said."""

    probe: str
    ok: bool
    said: str

    def as_json(self) -> dict[str, Any]:
        """The object that `mm4 postfix wire --json` prints."""
        return asdict(self)


@contextlib.contextmanager
def connected(path: Path, seconds: float = 5.0) -> Iterator[socket.socket]:
    """A connection on which nothing is waited for longer than `seconds`. Raises OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        yield client


def send(client: socket.socket, command: bytes, data: bytes = b"") -> None:
    """One packet of the milter protocol."""
    client.sendall(struct.pack("!I", len(data) + 1) + command + data)


def receive(client: socket.socket) -> tuple[bytes, bytes]:
    """The milter's next packet: its command and what goes with it. Raises OSError."""

    def exactly(count: int) -> bytes:
        got = b""
        while len(got) < count:
            part = client.recv(count - len(got))
            if not part:
                raise OSError("it hung up")
            got += part
        return got

    (size,) = struct.unpack("!I", exactly(4))
    if not 0 < size < 1 << 20:
        raise OSError("it is no milter")
    packet = exactly(size)
    return packet[:1], packet[1:]


def options(client: socket.socket) -> int:
    """Negotiate; the protocol flags that the milter asks for. Raises OSError."""
    send(client, _OPTNEG, struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
    answer, data = receive(client)
    if answer != _OPTNEG or len(data) < 12:
        raise OSError("it is no milter")
    return int(struct.unpack("!III", data[:12])[2])


def negotiate(path: Path) -> None:
    """The milter protocol's option negotiation: a connect alone would also succeed with nobody behind the socket.

    Raises OSError.
    """
    with connected(path) as client:
        options(client)


def greeting(path: Path) -> None:
    """The responder's LMTP greeting. Raises OSError."""
    with connected(path) as client:
        if not client.recv(3).startswith(b"220"):
            raise OSError("no LMTP greeting")


def question(path: Path) -> None:
    """The table of fingerprints, asked as the milter asks, of a client that nobody is. Raises OSError."""
    with connected(path) as client:
        client.sendall(b"request=fingerprint\n\n")
        if not client.recv(7).startswith(b"unknown"):
            raise OSError("it knows no fingerprints")

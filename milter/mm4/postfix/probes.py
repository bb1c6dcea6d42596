"""Questions whose answers show that mail would pass: of the milter, of the responder, of Postfix's own lines.

`postfix check` says nothing about any of this: it is content with every milter setting that stops all mail. No probe
but `deliver` leaves a message anywhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import smtplib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

from ..gateway.config import Config
from ..gateway.entries import IPNetwork
from ..gateway.identity import pinned
from .fingerprints import FINGERPRINTS_SOCKET
from .instance import Instance
from .serve import MILTER_SOCKET, RESPONDER_SOCKET

__all__ = ["Probe", "as_peer", "cannot_bind", "converse", "deliver", "listeners", "source_in"]

_OPTNEG = b"O"
_SECONDS = 30.0
"""Longest wait for one reply: a milter that does not answer is given up by Postfix after as long."""
_STEPS = ((b"C", 0x1, 0x1000), (b"M", 0x4, 0x4000), (b"R", 0x8, 0x8000))
"""Milter commands with the protocol flags that say `do not send it` and `I do not answer it` (SMFIP_NO*, _NR_*)."""
_VERDICTS = {b"c": "250 continue", b"a": "250 accept", b"d": "250 discard", b"r": "550 reject", b"t": "451 tempfail"}


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
def _connected(path: Path, seconds: float = 5.0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(str(path))
        yield client


def _send(client: socket.socket, command: bytes, data: bytes = b"") -> None:
    client.sendall(struct.pack("!I", len(data) + 1) + command + data)


def _receive(client: socket.socket) -> tuple[bytes, bytes]:
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


def _options(client: socket.socket) -> int:
    """Negotiate; the protocol flags that the milter asks for."""
    _send(client, _OPTNEG, struct.pack("!III", 6, 0x1FF, 0x1FFFFF))
    answer, data = _receive(client)
    if answer != _OPTNEG or len(data) < 12:
        raise OSError("it is no milter")
    return int(struct.unpack("!III", data[:12])[2])


def negotiate(path: Path) -> None:
    """The milter protocol's option negotiation: a connect alone would also succeed with nobody behind the socket.

    Raises OSError.
    """
    with _connected(path) as client:
        _options(client)


def greeting(path: Path) -> None:
    """The responder's LMTP greeting. Raises OSError."""
    with _connected(path) as client:
        if not client.recv(3).startswith(b"220"):
            raise OSError("no LMTP greeting")


def question(path: Path) -> None:
    """The table of fingerprints, asked as the milter asks, of a client that nobody is. Raises OSError."""
    with _connected(path) as client:
        client.sendall(b"request=fingerprint\n\n")
        if not client.recv(7).startswith(b"unknown"):
            raise OSError("it knows no fingerprints")


def listeners(config: Config) -> list[tuple[Path, Callable[[Path], None]]]:
    """The sockets of `mm4 serve`, each with the question that shows whether somebody answers there."""
    folder = Path(config.folders.sockets)
    asked: list[tuple[Path, Callable[[Path], None]]]
    asked = [(folder / MILTER_SOCKET, negotiate), (folder / RESPONDER_SOCKET, greeting)]
    return asked + ([(folder / FINGERPRINTS_SOCKET, question)] if pinned(config.peers) else [])


def as_peer(path: Path, address: str, mail_from: str, rcpt: str | None) -> list[str]:
    """What the milter itself says to a client with this address at MAIL and RCPT, as `250 continue` or its SMTP reply.

    The milter believes Postfix about the address, hence a peer's can be asked for from here. The message is given up.
    Raises OSError.
    """
    family = b"6" if ":" in address else b"4"
    said = [
        f"{address}\0".encode() + family + struct.pack("!H", 25) + f"{address}\0".encode(),
        f"<{mail_from}>\0".encode(),
        *([f"<{rcpt}>\0".encode()] if rcpt else []),
    ]
    replies = []
    with _connected(path, _SECONDS) as client:
        wanted = _options(client)
        for (command, unwanted, silent), data in zip(_STEPS, said, strict=False):
            if wanted & unwanted:
                continue
            _send(client, command, data)
            if wanted & silent:
                continue
            answer, text = _receive(client)
            while answer == b"p":  # it works on it
                answer, text = _receive(client)
            reply = text.rstrip(b"\0").decode("utf-8", "replace") if answer == b"y" else _VERDICTS.get(answer, "?")
            if command != b"C":
                replies.append(reply)
            if not reply.startswith("2"):
                break
        _send(client, b"A")
        _send(client, b"Q")
    return replies


def source_in(networks: Sequence[IPNetwork], towards: str) -> str | None:
    """An address of this host in one of the networks from which `towards` can be reached; None where there is none."""
    version = ipaddress.ip_address(towards).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((towards, 9))  # sends nothing: the kernel says which address it would take
        usual = ipaddress.ip_address(probe.getsockname()[0])
        if any(usual in network for network in networks if network.version == version):
            return str(usual)
    for network in (n for n in networks if n.version == version):
        for candidate in (network.network_address, network.network_address + 1):
            if candidate not in network:
                continue
            with socket.socket(family) as probe, contextlib.suppress(OSError):
                probe.bind((str(candidate), 0))
                return str(candidate)
    return None


def converse(
    host: str, port: int, *, source: str | None, helo: str, mail_from: str, rcpt: str | None, data: bytes | None = None
) -> list[str]:
    """MAIL and RCPT on a line of Postfix, then RSET, or `data`; the replies, the last one may be a refusal.

    Raises OSError where nobody answers, or as SMTP does not.
    """
    replies = []
    with smtplib.SMTP(timeout=_SECONDS, source_address=(source, 0) if source else None) as client:
        code, text = client.connect(host, port)
        if code != 220:
            return [_reply((code, text))]
        client.ehlo(helo)
        for command in (f"MAIL FROM:<{mail_from}>", *([f"RCPT TO:<{rcpt}>"] if rcpt else [])):
            answer = client.docmd(command)
            replies.append(_reply(answer))
            if answer[0] != 250:
                return replies
        replies.append(_reply(client.data(data))) if data else client.rset()
    return replies


def cannot_bind(host: str, port: int) -> str | None:
    """Why nobody could listen there now, None where one could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _reply(answer: tuple[int, bytes]) -> str:
    return f"{answer[0]} {answer[1].decode('utf-8', 'replace')}".replace("\n", " ")


def deliver(
    instance: Instance, host: str, port: int, *, helo: str, mailbox: str, seconds: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Probe:  # fmt: skip
    """Send an ordinary message to a mailbox and see it leave the queue.

    A bounce goes to the same mailbox. Raises PostfixError where the queue cannot be read.
    """
    name = f"an ordinary message to {mailbox}"
    text = (
        f"From: mm4 postfix wire <{mailbox}>\r\nTo: <{mailbox}>\r\nDate: {formatdate(localtime=True)}\r\n"
        "Subject: mm4 is wired into this Postfix\r\nAuto-Submitted: auto-generated\r\n\r\n"
        f"Sent by mm4 postfix wire on {helo}, to see that ordinary mail passes as before.\r\n"
    )
    try:
        replies = converse(
            host, port, source=None, helo=helo, mail_from=mailbox, rcpt=mailbox, data=text.encode("ascii", "replace")
        )
    except OSError as error:
        return Probe(name, False, str(error))
    if len(replies) < 3 or not replies[-1].startswith("250"):
        return Probe(name, False, replies[-1])
    queue_id = replies[-1].rpartition(" ")[2]
    end = clock() + seconds
    while True:
        waiting = next((entry for entry in instance.queue() if entry["queue_id"] == queue_id), None)
        if waiting is None:
            return Probe(name, True, f"{replies[-1]}, and gone from the queue")
        reasons = [r["delay_reason"] for r in waiting["recipients"] if r.get("delay_reason")]
        if reasons:
            return Probe(name, False, f"{replies[-1]}, then deferred: {reasons[0]}")
        if waiting.get("queue_name") == "hold":
            return Probe(name, True, f"{replies[-1]}, and on hold")
        if clock() > end:
            return Probe(name, False, f"{replies[-1]}, and still in the queue after {seconds:g} s")
        time.sleep(0.1)

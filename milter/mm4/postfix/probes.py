"""Questions whose answers show that mail would pass: of the milter, of the responder, of Postfix's own lines.

`postfix check` says nothing about any of this: it is content with every milter setting that stops all mail. No probe
but `deliver` leaves a message anywhere.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import smtplib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from pathlib import Path

from ..gateway.config import Config
from ..gateway.entries import IPNetwork
from ..gateway.identity import pinned
from .instance import Instance
from .sockets import (
    FINGERPRINTS_SOCKET,
    MILTER_SOCKET,
    RESPONDER_SOCKET,
    Probe,
    connected,
    greeting,
    negotiate,
    options,
    question,
    receive,
    send,
)  # fmt: skip

__all__ = ["Probe", "as_peer", "cannot_bind", "converse", "deliver", "free_port", "listeners", "source_in"]

_SECONDS = 30.0
"""Longest wait for one reply: a milter that does not answer is given up by Postfix after as long."""
_STEPS = ((b"C", 0x1, 0x1000), (b"M", 0x4, 0x4000), (b"R", 0x8, 0x8000))
"""Milter commands with the protocol flags that say `do not send it` and `I do not answer it` (SMFIP_NO*, _NR_*)."""
_VERDICTS = {b"c": "250 continue", b"a": "250 accept", b"d": "250 discard", b"r": "550 reject", b"t": "451 tempfail"}


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
    with connected(path, _SECONDS) as client:
        wanted = options(client)
        for (command, unwanted, silent), data in zip(_STEPS, said, strict=False):
            if wanted & unwanted:
                continue
            send(client, command, data)
            if wanted & silent:
                continue
            answer, text = receive(client)
            while answer == b"p":  # it works on it
                answer, text = receive(client)
            reply = text.rstrip(b"\0").decode("utf-8", "replace") if answer == b"y" else _VERDICTS.get(answer, "?")
            if command != b"C":
                replies.append(reply)
            if not reply.startswith("2"):
                break
        send(client, b"A")
        send(client, b"Q")
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


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of this address that nobody has now.

    Below those that the system gives to connections by itself (ip_local_port_range, ip(7)): no client takes it before
    it is used. Raises OSError where this host has no such address.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    below = range(max(first - 10_000, 1024), first)
    for port in random.sample(below, min(20, len(below))):
        if cannot_bind(host, port) is None:
            return port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


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

"""Which probes show that a wiring works, and from which address each is made.

A peer's address is seldom one of this host: then the milter is asked as that peer, and Postfix's line as whoever
this host is for it, our own side or a stranger.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..gateway.config import Config
from ..gateway.localside import Local
from ..gateway.peer import Peer
from .cftext import list_items
from .instance import Instance
from .mastercf import services_of
from .probes import Probe, as_peer, converse, source_in
from .shared import shared_line
from .sockets import MILTER_SOCKET

__all__ = ["link_probes", "mailbox_of", "ordinary_line", "reachable_within"]

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
_DIGITS = 12  # of a number that is made of a prefix; E.164 has up to 15


def _number(config: Config) -> tuple[Local, str] | None:
    """A number that we serve, made of a prefix, and its side."""
    for local in config.local:
        for prefix in map(str, local.numbers):
            if re.fullmatch(r"\+[0-9]{1,15}", prefix):
                return local, prefix.ljust(_DIGITS + 1, "0")
    return None


def ordinary_line(instance: Instance, master: str) -> tuple[str, int] | None:
    """Where ordinary mail comes in, as this host reaches it; None where no line takes any."""
    services = services_of(master)
    line = shared_line(services)
    if line is not None and line.type == "pass":
        line = next(s for s in services if s.program == "postscreen" and s.type == "inet")
    if line is None:
        return None
    host, _, port = line.name.rpartition(":")
    if not host:
        interfaces = list_items(instance.values("inet_interfaces")["inet_interfaces"])
        usual = "::1" if instance.values("inet_protocols")["inet_protocols"] == "ipv6" else "127.0.0.1"
        host = usual if not interfaces or interfaces[0] in ("all", "loopback-only") else interfaces[0]
    host = host.strip("[]")
    return _ANYWHERE.get(host, host), int(port) if port.isdigit() else socket.getservbyname(port, "tcp")


def mailbox_of(instance: Instance) -> str:
    """The operator's own postmaster."""
    origin = instance.values("myorigin")["myorigin"]
    if origin.startswith("/"):
        try:
            origin = Path(origin).read_text("utf-8").split()[0]
        except (OSError, IndexError):
            origin = instance.values("myhostname")["myhostname"]
    return f"postmaster@{origin}"


def reachable_within(host: str, port: int, seconds: float) -> bool:
    """Whether somebody listens there within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=seconds) as client:
                client.recv(4)
                client.sendall(b"QUIT\r\n")
                return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)


def link_probes(config: Config, instance: Instance, shared: tuple[str, int] | None) -> Iterator[Probe]:
    """MAIL and RCPT of each peer at the milter, then on the MM4 line, and on the `shared` one where peers come there.

    Nothing is sent: each conversation ends with RSET.
    """
    served = _number(config)
    rcpt = f"{served[1]}/TYPE=PLMN@{served[0].domain}" if served else None
    for name, peer in _by_address(config):
        for network in peer.networks[:1]:
            address = str(network.network_address if network.num_addresses == 1 else network.network_address + 1)
            what = f"peer {name} at the milter, from {address}"
            try:
                replies = as_peer(Path(config.folders.sockets) / MILTER_SOCKET, address, _sender(config, name), rcpt)
            except OSError as error:
                yield Probe(what, False, str(error))
            else:
                yield Probe(what, all(reply.startswith("2") for reply in replies), _said(replies))
    for listen in config.service.listen:
        yield _on_line(config, instance, "the MM4 line", (_ANYWHERE.get(listen.host, listen.host), listen.port), rcpt)
    if shared is not None and any(source_in(peer.networks, _address(shared[0])) for _, peer in _by_address(config)):
        yield _on_line(config, instance, "the shared line", shared, rcpt)


def _by_address(config: Config) -> list[tuple[str, Peer]]:
    """The peers whose address alone says who they are."""
    return [(name, peer) for name, peer in config.peers.items() if not (peer.certificates or peer.logins)]


def _sender(config: Config, peer: str) -> str:
    link = config.peers[peer]
    return link.system_address or f"system@{link.domains[0]}"


def _address(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return socket.getaddrinfo(host, None)[0][4][0]  # type: ignore[return-value]


def _on_line(config: Config, instance: Instance, line: str, at: tuple[str, int], rcpt: str | None) -> Probe:
    host, port = at
    address = _address(host)
    who, mail_from, source = "a stranger", "probe@mm4.invalid", None
    for name, peer in _by_address(config):
        if (found := source_in(peer.networks, address)) is not None:
            who, mail_from, source = f"peer {name}", _sender(config, name), found
            break
    else:
        for local in config.local:
            if (found := source_in(local.clients, address)) is not None:
                who, mail_from, source = "our own side", local.system_address, found
                break
    what = f"{who} on {line}, {host}:{port}" + (f" from {source}" if source else "")
    helo = instance.values("myhostname")["myhostname"]
    try:
        replies = converse(host, port, source=source, helo=helo, mail_from=mail_from, rcpt=rcpt)
    except OSError as error:
        return Probe(what, False, str(error))
    # Who is no client of ours has to be refused, for good: a 4xx would be Postfix that does not reach the milter.
    good = all(reply.startswith("250") for reply in replies) if source else replies[-1].startswith("5")
    return Probe(what, good, _said(replies))


def _said(replies: list[str]) -> str:
    return "; ".join(replies) or "no answer was asked for"

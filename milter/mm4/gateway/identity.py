"""Who a client is: by its address, the certificate that it showed and the login that it gave.

An entry of the configuration fits a client of whom everything holds that the entry names: an address in one of its
networks, and the subject of one of its certificates, and one of its logins. Of the entries that fit, one that asks for
a login goes before one that does not, then one that asks for a certificate, then the one with the most specific
network. So a peer that logs in is that peer even from a network of our own side.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from .credentials import Certificate
from .entries import IPNetwork
from .localside import Local
from .peer import Peer
from .section import place

__all__ = ["Client", "Entry", "clashes", "entries", "pinned", "unarmed"]


@dataclass(frozen=True, slots=True)
class Client:
    """What Postfix says of a client; `subject` only where it trusts the certificate."""

    address: str
    subject: str | None = None
    login: str | None = None
    fingerprint: str | None = None

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address as a value, IPv4 where it is one in IPv6's clothes; None for what is no address."""
        try:
            address = ipaddress.ip_address(self.address.lower().removeprefix("ipv6:"))
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            return address.ipv4_mapped
        return address


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the configuration with one of its networks and certificates; None, or no login, is any client.

    `owner` is the index of an identity of ours, or a peer's name; `index` that of the network.
    """

    owner: int | str
    index: int
    network: IPNetwork | None
    certificate: Certificate | None
    logins: frozenset[str]

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """What is asked first stands highest."""
        pin = self.certificate is not None and self.certificate.fingerprint is not None
        return bool(self.logins), pin, self.certificate is not None, self.network.prefixlen if self.network else -1

    def fits(self, client: Client, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        """Whether everything holds that this entry names."""
        return (
            (self.network is None or ip in self.network)
            and (self.certificate is None or self.certificate.fits(client.subject, client.fingerprint))
            and (not self.logins or client.login in self.logins)
        )


def entries(local: list[Local], peers: dict[str, Peer]) -> list[Entry]:
    """Every entry, in the order in which a client is compared with them: the first that fits is whose it is."""
    return sorted(_entries(local, peers), key=lambda entry: entry.rank, reverse=True)


def _entries(local: list[Local], peers: dict[str, Peer]) -> Iterator[Entry]:
    nobody: frozenset[str] = frozenset()
    for owner, side in enumerate(local):
        for index, network in enumerate(side.clients):
            yield Entry(owner, index, network, None, nobody)
    for name, peer in peers.items():
        for index, given in enumerate(peer.networks or [None]):
            certificates: list[Certificate | None] = [*peer.certificates] or [None]
            yield from (Entry(name, index, given, shown, frozenset(peer.logins)) for shown in certificates)


def pinned(peers: dict[str, Peer]) -> bool:
    """Whether any peer is known by a fingerprint, so that Postfix has to be asked for them."""
    return any(c.fingerprint is not None for peer in peers.values() for c in peer.certificates)


def clashes(local: list[Local], peers: dict[str, Peer]) -> Iterator[str]:
    """A problem for each client that would be two sides': entries that ask for the same and rank the same."""
    seen: list[Entry] = []
    for entry in _entries(local, peers):
        for other in seen:
            if not _same(entry, other) or (isinstance(entry.owner, int) and isinstance(other.owner, int)):
                continue
            yield _clash(entry, other)
            break
        seen.append(entry)


def _same(one: Entry, other: Entry) -> bool:
    return (
        one.network == other.network
        and one.rank == other.rank
        and (one.certificate is None or other.certificate is None or _alike(one.certificate, other.certificate))
        and (not one.logins or bool(one.logins & other.logins))
    )


def _alike(one: Certificate, other: Certificate) -> bool:
    """Whether one certificate could be both."""
    names = one.subject is None or other.subject is None or one.subject.casefold() == other.subject.casefold()
    return names and (one.fingerprint is None or other.fingerprint is None or one.fingerprint == other.fingerprint)


def _clash(entry: Entry, other: Entry) -> str:
    there = "local.clients" if isinstance(other.owner, int) else f"peers.{other.owner}"
    if entry.network is not None:
        there += ".networks" if isinstance(other.owner, str) else ""
        path = ("peers", entry.owner, "networks") if isinstance(entry.owner, str) else ("local", entry.owner, "clients")
        more = " and asks for no other login or certificate" if entry.logins or entry.certificate else ""
        return place(*path, entry.index) + (
            f"{entry.network} stands at {there} too{more}: a client address must name one side; "
            "give the two different networks" + (", logins or certificates" if more else "")
        )
    kind = "logins" if entry.logins else "certificates"
    shown = entry.certificate and (entry.certificate.fingerprint or entry.certificate.subject)
    both = min(entry.logins & other.logins) if entry.logins else shown
    return place("peers", entry.owner, kind) + (
        f"{both} stands at {there}.{kind} too: a client must name one peer; give each its own"
    )


def unarmed(peers: dict[str, Peer], *, tls: bool, ca: bool, sasl: bool) -> Iterator[str]:
    """A problem for each certificate or login that Postfix could never tell us of, as `service` stands."""
    for name, peer in peers.items():
        where = "certificates" if peer.certificates else "logins"
        if (peer.certificates or peer.logins) and not tls:
            yield place("peers", name, where) + (
                f"{where} need TLS: give service.tls with our own certificate, or know this peer by networks alone"
            )
        elif any(certificate.subject for certificate in peer.certificates) and not ca:
            yield place("peers", name, "certificates") + (
                "service.tls.ca is missing: Postfix tells the subject only of a certificate that an authority in that "
                "file vouches for (a self-signed one vouches for itself); a fingerprint alone needs none"
            )
        if peer.logins and not sasl:
            yield place("peers", name, "logins") + (
                "service.sasl is missing: it says where Postfix has logins and passwords from, for example "
                "{type: dovecot, path: private/auth}"
            )

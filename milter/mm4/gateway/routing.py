"""Who a client is and where a number goes: the configuration's tables, compiled once.

`identity` says whose a client is. Served numbers are asked before routes, whoever sends; of the routes the first that
fits wins. What a route asks of others comes through the caller's `Lookups`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..protocol.address import Address, Kind, operator_of, parse_address
from ..protocol.dialect import Dialect, builtin, is_file
from ..protocol.dialectfile import parse_dialect
from ..protocol.errors import InternalError, LookupUnavailable
from .config import Config
from .identity import Client, Entry, entries, pinned
from .internet import INTERNET
from .localside import Local, LocalSide
from .matching import Lookups, NoLookups, domain_fits, match
from .names import MAILDIR_DOMAIN, via
from .peer import Peer
from .routes import DomainRoute
from .template import fill
from .verdict import Destination

__all__ = ["HOME", "LOCAL", "MAILDIR", "Router", "Served", "Side"]

LOCAL = "local"
HOME = "home"
"""Destination of what is addressed to the gateway itself: RES to our system address, bounces; with a `number`, of what
only a bounce or a report may be addressed to."""
NO_LOOKUPS = NoLookups()
LONGEST_DOMAIN = 253  # RFC 1035 2.3.4
MAILDIR = "maildir"
"""The next hop of numbers whose mail goes into Maildirs."""


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the gateway: our own (`peer` is None) or a peer's.

    `identities` are those of ours whose client or peer it is, and `local` the one that faces it: the first, until a
    message tells.
    """

    name: str
    local: Local
    peer: Peer | None
    identities: tuple[Local, ...]

    @property
    def several(self) -> bool:
        """Whether more than one operator of ours may face it."""
        return len({local.domain for local in self.identities}) > 1

    def faces(self, local: Local) -> bool:
        """Whether this identity is one of those that face it."""
        return any(local.domain == mine.domain for mine in self.identities)

    @property
    def region(self) -> str | None:
        """The country in which a national number from there is read."""
        return self.local.region if self.peer is None else self.peer.region


class Served(NamedTuple):
    """Who serves a number or a short code: the words in the file that say so, the identity, and where its mail goes."""

    rule: str
    local: Local
    to: Local | LocalSide


class Router:
    """Clients to sides, numbers to destinations and peers to dialects, for one configuration.

    Raises InternalError where the configuration came without the texts of its dialect files.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        # Loaded now, so that no message waits for it.
        tables = {name: _dialect(name, config) for name in {"3gpp", *(p.dialect for p in config.peers.values())}}
        self._spoken = {LOCAL: tables["3gpp"]} | {
            name: replace(tables[peer.dialect], version=peer.mms_version or tables[peer.dialect].version)
            for name, peer in config.peers.items()
        }
        self.reads_bodies = any(peer.reads_body for peer in config.peers.values())
        """Whether any rule needs the body of a message."""
        self._identities = {name: _identities(config, peer) for name, peer in config.peers.items()}
        self.pinned = pinned(config.peers)
        """Whether a client's fingerprint has to be known to tell who it is."""
        self._entries = [(entry, self._side_of(entry)) for entry in entries(config.local, config.peers)]
        served = [
            (prefix, Served(f'{name}: "{prefix}"', local, to))
            for local in config.local
            for name, prefixes, to in local.served()
            for prefix in prefixes
        ]
        self._served = sorted(served, key=lambda item: -len(item[0]))
        self._short_codes = {
            code: Served(f'local.sides[{i}].short_codes: "{code}"', local, to)
            for local in reversed(config.local)
            for i, to in enumerate(local.sides)
            for code in to.short_codes
        }
        self.own_domains = frozenset(local.domain for local in config.local)
        self.several = len(self.own_domains) > 1
        """Whether we are more than one operator."""
        theirs = {domain for peer in config.peers.values() for domain in (*peer.domains, peer.write_domain)}
        inward = {domain for local in config.local for domain in local.delivery_domains}
        self.mm4_domains = frozenset({*self.own_domains, *theirs, *inward})
        """Every domain in which an address is MM4's, and no e-mail address."""

    def dialect(self, side: str) -> Dialect:
        """What is spoken with a peer, in the version that it gets; with anybody else, as with our own side, 3gpp."""
        return self._spoken.get(side) or self._spoken[LOCAL]

    def side(self, client: Client) -> Side | None:
        """The side of a client; None for a stranger and for what has no address."""
        ip = client.ip
        if ip is None:
            return None
        return next((side for entry, side in self._entries if entry.fits(client, ip)), None)

    def named(self, name: str) -> Side | None:
        """The side of this name, whichever of our identities it faces."""
        peer = self.config.peers.get(name)
        if peer is not None:
            return Side(name, self._identities[name][0], peer, self._identities[name])
        return Side(LOCAL, self.config.home, None, tuple(self.config.local)) if name == LOCAL else None

    def _side_of(self, entry: Entry) -> Side | None:
        if isinstance(entry.owner, str):
            return self.named(entry.owner)
        ours = tuple(local for local in self.config.local if entry.network in local.clients)
        return Side(LOCAL, ours[0], None, ours)

    def identities(self, peer: str) -> tuple[Local, ...]:
        """The identities whose peer this is, at least one. Raises KeyError for what is no peer."""
        return self._identities[peer]

    def local_of(self, domain: str) -> Local | None:
        """The identity whose MM4 domain this is."""
        return next((local for local in self.config.local if local.domain == domain.lower()), None)

    def serves(self, key: str) -> Served | None:
        """Who serves an E.164 number (with its plus) or a short code, or None."""
        return self._short_codes.get(key) or next(
            (served for prefix, served in self._served if key.startswith(prefix)), None
        )

    def route(
        self, address: Address, speaking: Collection[Local] | None = None, lookups: Lookups = NO_LOOKUPS
    ) -> Destination | None:
        """Where a number goes, by what we serve and then by routes; None where nothing fits.

        `speaking` are the identities in whose name it would go: only their peers are taken. Left out: any. Raises
        LookupUnavailable where a route's question got no usable answer: the next route might be the wrong one.
        """
        here = self.served(address)
        if here is not None or address.number is None:
            return here
        for index, route in enumerate(self.config.routes):
            try:
                hit = match(route, address, self.config.peers, lookups)
            except LookupUnavailable as error:
                raise LookupUnavailable(f"routes[{index}]: {error}") from None
            if hit is not None and self._open(hit.peer, speaking):
                return self.outward(address, hit.peer, f"routes[{index}]: {hit.rule}", hit.operator)
        return None

    def _open(self, peer: str, speaking: Collection[Local] | None) -> bool:
        if speaking is None or not self.several:
            return True
        return bool({local.domain for local in speaking} & {local.domain for local in self._identities[peer]})

    def served(self, address: Address) -> Destination | None:
        """Where a number or a short code goes that we serve; None for others."""
        found = self.serves(address.value) if address.kind in (Kind.E164, Kind.SHORT_CODE) else None
        return self._inward(address.value, found.to, found.rule) if found else None

    def inward(self, address: Address, local: Local) -> Destination | None:
        """Where a subscriber of ours is reached, or an application of `local` by its short code; None for others."""
        here = self.served(address)
        if here is None and address.kind is Kind.SHORT_CODE:
            return self._inward(address.value, local, "a short code of ours")
        return here

    def names_domain(self, domain: str) -> bool:
        """Whether a route is for recipients in this domain."""
        return any(isinstance(route, DomainRoute) and domain_fits(route, domain) for route in self.config.routes)

    def outward(
        self, address: Address, peer: str, rule: str, operator: tuple[str, str] | None = None
    ) -> Destination:
        """A recipient on the way to a peer, as that peer wants him written and through its next hop.

        `operator` is his, MCC and MNC, where the route knows. It `becomes` nothing where the peer wants the operator in
        the address and neither the route nor the recipient's own domain tells it.
        """
        link = self.config.peers[peer]
        operator = operator or operator_of(address.domain)
        if address.kind in (Kind.E164, Kind.SHORT_CODE):
            written = fill(link.addresses.recipient, address, domain=link.write_domain, operator=operator)
        else:
            written = address.write(link.write_domain)
        return Destination(peer, address.number, via(written, peer) if written else None, link.next_hop, rule)

    def internet(self, address: Address, rule: str) -> Destination | None:
        """An e-mail address beyond every domain of ours and our peers'; None where no such mail goes out, and for one
        that Postfix could not carry there: of a host's address, or too long with the next hop's suffix behind it.
        """
        hop = self.config.mail.next_hop
        domain = (address.domain or "").rstrip(".")
        if hop is None or address.kind is not Kind.EMAIL or domain.startswith("["):
            return None
        if domain.lower() in self.mm4_domains or self.names_domain(domain):
            return None
        path = via(f"{address.value.rpartition('@')[0]}@{domain}", INTERNET)
        fits = len(path.rpartition("@")[2]) <= LONGEST_DOMAIN
        return Destination(INTERNET, address.key, path, hop, rule) if fits else None

    @staticmethod
    def _inward(number: str, to: Local | LocalSide, rule: str) -> Destination:
        if to.deliver_to is None:
            return Destination(LOCAL, number, f"{number}@{MAILDIR_DOMAIN}", MAILDIR, rule)
        becomes = fill(to.deliver_to, parse_address(number), domain="")
        return Destination(LOCAL, number, becomes, to.next_hop, rule)


def _identities(config: Config, peer: Peer) -> tuple[Local, ...]:
    return tuple(local for local in config.local if not peer.local or local.domain in peer.local)


def _dialect(name: str, config: Config) -> Dialect:
    if not is_file(name):
        return builtin(name)
    if name not in config.dialects:
        raise InternalError(f"{name}: the text of this dialect was not handed over")
    return parse_dialect(config.dialects[name], name)

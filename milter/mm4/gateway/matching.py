"""What a row of `routes` says about a number: the peer, or nothing. Whoever calls brings the answers of others.

Look-ups are asked by `Lookups`, which the caller gives: nothing here reads a file or a network. What an answer means is
decided here. An answer that leads to no peer is no reason to go on to the next row: that might be the wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

from ..protocol.address import Address
from ..protocol.errors import LookupUnavailable
from .peer import Peer
from .routes import (
    ELSE,
    DefaultRoute,
    DomainRoute,
    Enum,
    EnumRoute,
    Http,
    HttpRoute,
    PrefixRoute,
    RangeRoute,
    ReachRoute,
    RegexRoute,
    Route,
    plain_domain,
)

__all__ = ["Hit", "Lookups", "NoLookups", "ReachRow", "domain_fits", "match"]


class ReachRow(Protocol):
    """A row of a reach list: the prefix with its plus, whose it is (empty where not said), and the peer."""

    @property
    def prefix(self) -> str: ...

    @property
    def operator(self) -> str: ...

    @property
    def mcc(self) -> str: ...

    @property
    def mnc(self) -> str: ...

    @property
    def peer(self) -> str: ...


class Lookups(Protocol):
    """Who answers questions about an E.164 number (with its plus); every method raises LookupUnavailable."""

    def reach(self, route: ReachRoute, number: str) -> ReachRow | None:
        """The row of the list with the longest prefix."""

    def enum(self, asked: Enum, number: str) -> str | None:
        """The mailto: or tel: URI."""

    def http(self, asked: Http, number: str) -> str | None:
        """The value in the service's answer."""


class NoLookups:
    """Nobody to ask."""

    def reach(self, route: ReachRoute, number: str) -> ReachRow | None:
        """Raises LookupUnavailable."""
        raise LookupUnavailable(f"{route.reach} was not read")

    def enum(self, asked: Enum, number: str) -> str | None:
        """Raises LookupUnavailable."""
        raise LookupUnavailable(f"{asked.zone} was not asked")

    def http(self, asked: Http, number: str) -> str | None:
        """Raises LookupUnavailable."""
        raise LookupUnavailable(f"{asked.url} was not asked")


@dataclass(frozen=True, slots=True)
class Hit:
    """The peer to whom a number goes, and what says so."""

    peer: str
    rule: str
    operator: tuple[str, str] | None = None
    """The number's operator, MCC and MNC, where the row tells it."""


def match(route: Route, address: Address, peers: Mapping[str, Peer], lookups: Lookups) -> Hit | None:
    """What a row says about an E.164 number; None where the next one is to be asked.

    Raises LookupUnavailable where its question got no answer, or one that leads to no peer.
    """
    number = address.number or ""
    match route:
        case PrefixRoute():
            return Hit(route.peer, f'prefix "{route.prefix}"') if number.startswith(route.prefix) else None
        case RangeRoute():
            first, last = route.range.first, route.range.last
            fits = len(number) == len(first) and first <= number <= last
            return Hit(route.peer, f'range "{first}" to "{last}"') if fits else None
        case RegexRoute():
            return Hit(route.peer, f'regex "{route.regex}"') if re.fullmatch(route.regex, number) else None
        case DomainRoute():
            fits = address.domain is not None and domain_fits(route, address.domain)
            return Hit(route.peer, f'domain "{route.domain}"') if fits else None
        case DefaultRoute():
            return Hit(route.default, "default")
        case ReachRoute():
            row = lookups.reach(route, number)
            if row is None:
                return None
            operator = f" ({row.operator})" if row.operator else ""
            rule = f'reach {PurePath(route.reach).name} prefix "{row.prefix}"{operator}'
            return Hit(row.peer, rule, (row.mcc, row.mnc) if row.mcc and row.mnc else None)
        case EnumRoute():
            uri = lookups.enum(route.enum, number)
            return None if uri is None else Hit(_of_uri(uri, route.enum, peers), f"enum {route.enum.zone}: {uri}")
        case HttpRoute():
            value = lookups.http(route.http, number)
            return None if value is None else Hit(_of_value(value, route.http, peers), f"http: {value}")


def domain_fits(route: DomainRoute, domain: str) -> bool:
    """Whether a recipient's domain is that of a row, in any of its spellings."""
    pattern, plain = plain_domain(route.domain), plain_domain(domain)
    return plain.endswith(pattern[1:]) if pattern.startswith("*.") else plain == pattern


def _of_value(value: str, http: Http, peers: Mapping[str, Peer]) -> str:
    peer = http.peers.get(value) or http.peers.get(ELSE) if http.peers else value
    if peer is None or peer not in peers:
        where = "no row of its table" if http.peers else "no peer"
        raise LookupUnavailable(f"http: the answer is {value!r}, and that is {where}")
    return peer


def _of_uri(uri: str, enum: Enum, peers: Mapping[str, Peer]) -> str:
    scheme, _, rest = uri.partition(":")
    found = _of_domain(rest, enum, peers) if scheme.lower() == "mailto" else _of_tel(rest, enum)
    found = found or enum.peers.get(ELSE)
    if found is None:
        raise LookupUnavailable(f"enum: the answer is {uri}, and that is no row of its table and no domain of a peer")
    return found


def _of_domain(rest: str, enum: Enum, peers: Mapping[str, Peer]) -> str | None:
    """The peer of a mailto (RFC 6068): its table, then the peers' own domains."""
    domain = plain_domain(_unquoted(rest.partition("?")[0]).rpartition("@")[2])
    table = enum.peers
    below = [key for key in table if key.startswith("*.") and domain.endswith(key[1:])]
    own = (name for name, peer in peers.items() if domain in map(plain_domain, (*peer.domains, peer.write_domain)))
    return table.get(domain) or (table[max(below, key=len)] if below else next(own, None))


def _unquoted(text: str) -> str:
    """RFC 3986 2.1; what is no ASCII then is no domain and no number either."""
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda m: chr(int(m[1], 16)), text)


def _of_tel(rest: str, enum: Enum) -> str | None:
    """The peer of a tel URI (RFC 3966): by its routing number, where it has one (RFC 4694), else by the number."""
    number, *parameters = (re.sub(r"[-.()]", "", _unquoted(part)) for part in rest.split(";"))
    routing = next((p[3:] for p in parameters if p.lower().startswith("rn=")), number)
    fitting = [key for key in enum.peers if key != ELSE and "." not in key and routing.lower().startswith(key.lower())]
    return enum.peers[max(fitting, key=len)] if fitting else None

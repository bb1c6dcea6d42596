"""ENUM: a number's MMS address in DNS (RFC 6116), as the services E2U+mms:mailto and E2U+mms:tel give it (RFC 4355).

Only the servers that are given are asked. What cannot be read as it stands there, and a rule that may take for ever
on a number, is no answer: a wrong guess would be a wrong route.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
import dns.ttl
from dns.rdtypes.ANY.SOA import SOA
from dns.rdtypes.IN.NAPTR import NAPTR

from ..protocol.errors import LookupUnavailable
from .cache import Cache

__all__ = ["Enum", "domain_of_number", "rewrite"]

SERVICES = {"mms:mailto": "mailto:", "mms:tel": "tel:"}
"""What is asked for, and the scheme that its URI has: RFC 4355 sections 5 and 6."""

_MOST = 50_000  # answers kept
_LONGEST, _LONGEST_NEGATIVE = 86_400, 10_800  # seconds; RFC 2308 section 5: one to three hours work well
_CHAIN = 5  # non-terminal rules one after the other, RFC 6116 section 5.2.1
_CHOICES = 4  # quantifiers and alternatives in one rule: with none on a group, a match takes 16^4 steps at most
_LONGEST_URI = 400


class Enum:
    """A zone, asked of its servers in their order; safe for any number of threads."""

    def __init__(self, zone: str, servers: Sequence[tuple[str, int]], seconds: float) -> None:
        self.zone = zone
        self._seconds = seconds
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        # One that is silent leaves the others their time.
        self._resolver.timeout = seconds / len(servers)
        self._cache: Cache[str | None] = Cache(_MOST)

    def find(self, number: str) -> str | None:
        """The URI of an E.164 number (with its plus), mailto: or tel:; None where DNS has none for MMS.

        Raises LookupUnavailable where nobody answers in time, or what is said cannot be used.
        """
        kept = self._cache.get(number)
        if kept is not None:
            return kept[0]
        uri, seconds = self._ask(number)
        self._cache.put(number, uri, min(seconds, _LONGEST if uri else _LONGEST_NEGATIVE))
        return uri

    def probe(self) -> None:
        """Ask whether somebody serves the zone. Raises LookupUnavailable."""
        try:
            self._resolver.resolve(self.zone, "SOA", lifetime=self._seconds, search=False)
        except dns.resolver.NoAnswer:
            return
        except dns.exception.DNSException as error:
            raise LookupUnavailable(f"{self.zone}: {_said(error)}") from None

    def _ask(self, number: str) -> tuple[str | None, int]:
        name = domain_of_number(number, self.zone)
        seconds: int = dns.ttl.MAX_TTL
        for _ in range(_CHAIN + 1):
            records, ttl = self._records(name)
            seconds = min(seconds, ttl)
            found = next(_usable(records, number, name), None)
            if found is None or isinstance(found, str):
                return found, seconds
            name = found.to_text()
        raise LookupUnavailable(f"{name} NAPTR: more than {_CHAIN} rules lead on to one another")

    def _records(self, name: str) -> tuple[list[NAPTR], int]:
        """The NAPTR records of a name in their order, none where there are none, and how many seconds that holds."""
        try:
            answer = self._resolver.resolve(name, "NAPTR", lifetime=self._seconds, search=False)
        except dns.resolver.NXDOMAIN as error:
            responses = error.responses()  # type: ignore[no-untyped-call]
            return [], min(map(_negative_ttl, responses.values()), default=0)
        except dns.resolver.NoAnswer as error:
            return [], _negative_ttl(error.response())  # type: ignore[no-untyped-call]
        except dns.exception.DNSException as error:
            raise LookupUnavailable(f"{name} NAPTR: {_said(error)}") from None
        records = [cast("NAPTR", record) for record in answer]
        return sorted(records, key=lambda r: (r.order, r.preference)), answer.chaining_result.minimum_ttl


def domain_of_number(number: str, zone: str) -> str:
    """The name under which a number stands: its digits from the last to the first, RFC 6116 section 3.2."""
    return ".".join([*reversed(number.removeprefix("+")), zone.strip(".")]) + "."


def rewrite(rule: str, text: str) -> str | None:
    """A substitution expression (RFC 3402 section 3.2) applied to a text; None where it does not fit.

    Raises ValueError where it is none, or could take for ever.
    """
    delimiter = rule[:1]
    if not delimiter or delimiter.isdigit() or delimiter in "\\i":
        raise ValueError(f"{rule[:80]!r} is no substitution expression")
    # A delimiter behind a backslash belongs to its part.
    end = re.escape(delimiter)
    part = rf"((?:\\.|[^\\{end}])*)"
    whole = re.fullmatch(rf"{part}{end}{part}{end}(i?)", rule[1:], re.DOTALL)
    if whole is None:
        raise ValueError(f"{rule[:80]!r} is no substitution expression")
    pattern, replacement, flag = (part.replace("\\" + delimiter, delimiter) for part in whole.groups())
    bare = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern)
    if len(re.findall(r"[*+?{|]", bare)) > _CHOICES or re.search(r"\)[*+?{]", bare):
        raise ValueError(f"{pattern[:80]!r} may take for ever")
    try:
        match = re.search(pattern, text, re.IGNORECASE if flag else 0)
        if match is None:
            return None
        made = re.sub(r"\\([0-9\\])", lambda m: (match[int(m[1])] or "") if m[1] != "\\" else "\\", replacement)
    except (re.error, IndexError, OverflowError) as error:
        raise ValueError(f"{rule[:80]!r} cannot be used: {error}") from None
    return text[: match.start()] + made + text[match.end() :]


def _usable(records: Sequence[NAPTR], number: str, name: str) -> Iterator[str | dns.name.Name]:
    """What the records come to, in their order: a URI for MMS, or the name at which to go on."""
    for record in records:
        flags, service = (part.decode("latin-1").lower() for part in (record.flags, record.service))
        if not flags and not service:
            if record.regexp or record.replacement == dns.name.root:
                raise LookupUnavailable(f"{name} NAPTR: a rule that leads on names no place")
            yield record.replacement
            continue
        head, *wanted = service.split("+")
        scheme = next((SERVICES[kind] for kind in wanted if kind in SERVICES), None)
        if head != "e2u" or scheme is None:
            continue
        try:
            if flags != "u":
                raise ValueError(f"the flag {flags[:20]!r} is unknown")
            uri = rewrite(record.regexp.decode("utf-8"), number)
        except (UnicodeDecodeError, ValueError) as error:
            raise LookupUnavailable(f"{name} NAPTR: {error}") from None
        if uri is None:
            continue
        if not uri.lower().startswith(scheme) or len(uri) > _LONGEST_URI or not (uri.isascii() and uri.isprintable()):
            raise LookupUnavailable(f"{name} NAPTR: {uri[:80]!r} is no {scheme} URI")
        yield uri


def _negative_ttl(response: dns.message.QueryMessage) -> int:
    """How long a name may count as absent: what the SOA says, and not at all without one (RFC 2308 section 5)."""
    found = next((rrset for rrset in response.authority if rrset.rdtype == dns.rdatatype.SOA and rrset), None)
    return min(found.ttl, cast("SOA", found[0]).minimum) if found else 0


def _said(error: dns.exception.DNSException) -> str:
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"no answer within {error.kwargs.get('timeout', 0):.1f} s"
    if isinstance(error, dns.resolver.NoNameservers):
        return "no server gives a usable answer: " + "; ".join(
            f"{given[0]} said {given[-1] and given[3]}" for given in error.kwargs.get("errors", ())
        )
    return str(error) or type(error).__name__

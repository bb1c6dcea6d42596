"""Where a next hop is, as Postfix finds it: MX first, then an address, in DNS and then in /etc/hosts."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

import dns.exception
import dns.resolver

from ..protocol.errors import LookupUnavailable

__all__ = ["addresses", "exchangers", "reachable"]


def reachable(domain: str, *, seconds: float = 5.0, resolver: dns.resolver.Resolver | None = None) -> bool:
    """Whether the domain has an MX, A or AAAA record. Raises LookupUnavailable where nobody answers in time."""
    asked = resolver or dns.resolver.get_default_resolver()
    for kind in ("MX", "A", "AAAA"):
        try:
            asked.resolve(domain, kind, lifetime=seconds)
        except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
            continue
        except dns.exception.DNSException as error:
            raise LookupUnavailable(f"DNS gives no answer for {domain}: {error}") from None
        return True
    return False


def exchangers(domain: str, *, seconds: float = 5.0, resolver: dns.resolver.Resolver | None = None) -> list[str]:
    """The hosts that take mail for a domain, the preferred first; the domain itself where it has no MX.

    Empty where its MX says that nobody does (RFC 7505). Raises LookupUnavailable.
    """
    asked = resolver or dns.resolver.get_default_resolver()
    try:
        found = asked.resolve(domain, "MX", lifetime=seconds)
    except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
        return [domain]
    except dns.exception.DNSException as error:
        raise LookupUnavailable(f"DNS gives no answer for the MX of {domain}: {error}") from None
    rows = sorted((record.preference, record.exchange.to_text(omit_final_dot=True)) for record in found)
    return [host for _, host in rows if host not in ("", ".")]


def addresses(
    host: str, versions: Collection[int], *, seconds: float = 5.0, resolver: dns.resolver.Resolver | None = None
) -> list[str]:
    """The addresses of a host or of a literal, of these IP versions alone, IPv6 first; empty where there is none.

    Raises LookupUnavailable where DNS does not answer and /etc/hosts does not have it either.
    """
    try:
        literal = ipaddress.ip_address(host.lower().removeprefix("ipv6:"))
        return [str(literal)] if literal.version in versions else []
    except ValueError:
        pass
    asked = resolver or dns.resolver.get_default_resolver()
    found: list[str] = []
    failure: dns.exception.DNSException | None = None
    for version, kind in ((6, "AAAA"), (4, "A")):
        if version in versions:
            try:
                found += [record.address for record in asked.resolve(host, kind, lifetime=seconds)]
            except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
                pass
            except dns.exception.DNSException as error:
                failure = error
    if found:
        return found
    families = {socket.AF_INET6: 6, socket.AF_INET: 4}
    try:
        native = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        native = []
    found = [str(at[0]) for family, _, _, _, at in native if families.get(family) in versions]
    if not found and failure is not None:
        raise LookupUnavailable(f"DNS gives no answer for {host}: {failure}")
    return found

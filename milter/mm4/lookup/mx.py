"""Whether a next hop that is written as a domain can be found, as Postfix would: MX first, then an address."""

from __future__ import annotations

import dns.exception
import dns.resolver

from ..protocol.errors import LookupUnavailable

__all__ = ["reachable"]


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

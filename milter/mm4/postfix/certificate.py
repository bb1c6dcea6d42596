"""What Postfix reads in a server's certificate: names and fingerprints, held against a peer's `tls`.

As smtp(8) does it (tls_client.c, tls_fprint.c; postconf(5): smtp_tls_secure_cert_match): the DNS names count, and the
CN where there is none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["fingerprints", "fits", "names"]

_SPKI = 6
"""Place of the public key among the parts of a certificate, behind the version (RFC 5280 4.1)."""


def names(certificate: Mapping[str, Any]) -> list[str]:
    """The names in a certificate, as `SSLSocket.getpeercert` tells it."""
    found = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    parts = (pair for part in certificate.get("subject", ()) for pair in part)
    return found or [value for key, value in parts if key == "commonName"]


def fits(certified: Iterable[str], wanted: Iterable[str], *, host: str, next_hop: str) -> bool:
    """Whether one of the names in a certificate is one that is wanted.

    `wanted` may hold `hostname`, `nexthop` and `dot-nexthop`; one that begins with a dot is every name below it.
    """
    words = {"hostname": host, "nexthop": next_hop, "dot-nexthop": f".{next_hop}"}
    patterns = [words.get(name, name).lower().rstrip(".") for name in wanted]
    return any(_fits(name.lower().rstrip("."), pattern) for name in certified for pattern in patterns)


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith("."):
        return name.endswith(pattern) and len(name) > len(pattern)
    return name == pattern or (name.startswith("*.") and pattern.partition(".")[2] == name[2:] != "")


def fingerprints(der: bytes) -> tuple[str, str | None]:
    """SHA-256 of a certificate and of its public key, as Postfix writes them; the second None where it is not found."""
    key = _public_key(der)
    return _digest(der), _digest(key) if key else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).digest().hex(":").upper()


def _public_key(der: bytes) -> bytes | None:
    try:
        [whole] = _parts(der)
        body = next(_parts(_value(whole)))
        parts = list(_parts(_value(body)))
    except (ValueError, IndexError, StopIteration):
        return None
    version = 1 if parts and parts[0][:1] == b"\xa0" else 0
    return parts[version + _SPKI - 1] if len(parts) >= version + _SPKI else None


def _parts(data: bytes) -> Iterator[bytes]:
    """Elements of DER that follow one another, heads included. Raises ValueError, IndexError."""
    while data:
        start, length = _head(data)
        if start + length > len(data):
            raise ValueError("cut short")
        yield data[: start + length]
        data = data[start + length :]


def _value(element: bytes) -> bytes:
    return element[_head(element)[0] :]


def _head(data: bytes) -> tuple[int, int]:
    """Where the value of the first element begins, and its length."""
    first = data[1]
    if first < 0x80:
        return 2, first
    count = first & 0x7F
    return 2 + count, int.from_bytes(data[2 : 2 + count], "big")

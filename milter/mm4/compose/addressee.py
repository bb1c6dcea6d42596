"""Addresses that we are given to write: numbers, short codes and e-mail, judged before anything is composed.

An e-mail address is judged by email-validator; special-use domains (`.test`, `.invalid`, `.local`) are the caller's
to use, as MM4 domains need not be in DNS.
"""

from __future__ import annotations

from email_validator import EmailNotValidError, validate_email

from ..protocol.address import Address, Kind, parse_address
from ..protocol.errors import UsageError

__all__ = ["addressee", "envelope"]


def addressee(text: str, region: str | None = None) -> Address:
    """An address that somebody may have. `region` completes national numbers. Raises UsageError."""
    address = parse_address(text, region)
    if address.kind in (Kind.INVALID, Kind.SYSTEM):
        raise UsageError(f"{text!r} is no address: a number such as +447700900101, a short code or e-mail")
    if address.kind is Kind.EMAIL:
        try:
            # Behind another domain a special-use one is judged by its syntax alone.
            validate_email(f"{address.value}.mail.com", check_deliverability=False)
        except EmailNotValidError as error:
            raise UsageError(f"{text!r} is no address: {error}") from None
    return address


def envelope(text: str, domain: str, region: str | None = None) -> str:
    """The envelope address as a local client writes it: `domain` stands behind what has none. Raises UsageError."""
    address = addressee(text, region)
    return address.write(address.domain or domain)

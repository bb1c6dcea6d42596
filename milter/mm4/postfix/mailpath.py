"""Envelope addresses as SMTP and LMTP write them: the path of a MAIL or RCPT, and its two parts."""

from __future__ import annotations

import re

__all__ = ["read_path", "split_address"]

_PATH = re.compile(r'\s*<\s*((?:"(?:[^"\\]|\\.)*"|[^">])*)>')
_BARE_PATH = re.compile(r"\s*([^\s<>]+)(?:\s|$)")
_SOURCE_ROUTE = re.compile(r"@[^:\"]*:")


def split_address(address: str) -> tuple[str, str]:
    """Split an envelope address into local part and domain; quoting of the local part is taken off.

    The domain is in lower case and without a trailing dot, "" where there is none. Never raises.
    """
    local, at, domain = address.rpartition("@")
    if not at or '"' in domain:  # an @ inside of quotes is no separator
        local, domain = address, ""
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return local, domain.lower().removesuffix(".")


def read_path(argument: str) -> str | None:
    """Read the address of a MAIL or RCPT argument (what follows the colon); None where there is none."""
    match = _PATH.match(argument) or _BARE_PATH.match(argument)
    if match is None:
        return None
    address = match[1].strip()
    if route := _SOURCE_ROUTE.match(address):
        return address[route.end() :]
    return address

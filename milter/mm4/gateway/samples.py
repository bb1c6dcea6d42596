"""Numbers that stand for many: one of ours, and one that goes to a peer, for a trial that sends no message."""

from __future__ import annotations

from ..protocol.address import Address, Kind, parse_address
from .config import Config
from .localside import Local
from .routes import PrefixRoute, RangeRoute

__all__ = ["originator_sample", "recipient_sample"]

_LENGTH = 12
"""A plus and eleven digits: within the length of every country's numbers, or near it."""


def originator_sample(local: Local) -> Address | None:
    """A number that we serve; None where every prefix is too short to tell a country."""
    return next((found for prefix in local.numbers if (found := _completed(prefix))), None)


def recipient_sample(config: Config, peer: str) -> Address | None:
    """A number of the first row of routes that shows one and leads to the peer; None where none does."""
    for route in config.routes:
        if isinstance(route, PrefixRoute) and route.peer == peer and (found := _completed(route.prefix)):
            return found
        if isinstance(route, RangeRoute) and route.peer == peer:
            return parse_address(route.range.first)
    return None


def _completed(prefix: str) -> Address | None:
    found = parse_address(prefix.ljust(_LENGTH, "0"))
    return found if len(prefix) > 1 and found.kind is Kind.E164 else None

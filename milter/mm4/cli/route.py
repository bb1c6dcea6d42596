"""`mm4 route`: where a number goes, which rule says so, and what was asked of others on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..gateway.config import Config
from ..gateway.envelope import receive
from ..gateway.names import strip_via
from ..gateway.outcomes import NO_OPERATOR
from ..gateway.routes import Enum, Http, ReachRoute
from ..gateway.routing import Router, Side
from ..gateway.verdict import Destination
from ..lookup.enum import domain_of_number
from ..lookup.reach import Reached
from ..postfix.lookups import RouteLookups
from ..postfix.settings import read_config
from ..protocol.address import Address, Kind, parse_address
from ..protocol.errors import LookupUnavailable, UsageError
from .options import config_option, echo_json, json_option, printable

__all__ = ["route"]

T = TypeVar("T")


@click.command()
@click.argument("number")
@config_option
@click.option("--from", "peer", metavar="PEER", help="For mail of this peer: what it may not send is refused.")
@json_option
def route(number: str, config_file: str, peer: str | None, as_json: bool) -> int:
    """Say where NUMBER goes and which rule says so; look-ups are really made. Exit 1 where it goes nowhere.

    NUMBER may have a domain behind it, as in RCPT, for the rows that ask for one, or be a short code of ours.
    """
    config, _ = read_config(config_file)
    address = parse_address(number, config.home.region)
    if address.kind is not Kind.E164 and Router(config).served(address) is None:
        raise UsageError(f"{number!r} is no E.164 number: write a plus and 7 to 15 digits, for example +447700900101")
    if peer is not None and peer not in config.peers:
        raise UsageError(f"--from {peer}: no peer has this name; there are: {', '.join(config.peers) or 'none'}")
    lookups = _Noted(RouteLookups(config))
    found: Destination | None = None
    reason: str | None = None
    try:
        found, reason = _goes(address, config, peer, lookups)
    except LookupUnavailable as error:
        reason = f"{error.reply}: {error}"
    if as_json:
        answer = {
            "number": address.value,
            "peer": found.side if found else None,
            "next_hop": found.next_hop if found else None,
            "rule": found.rule if found else None,
        }
        asked = {"lookups": lookups.notes} if lookups.notes else {}
        echo_json(answer | asked | ({"reason": reason} if reason else {}))
        return 0 if found else 1
    for note in lookups.notes:
        said = note["answer"] or note["failed"] or "nothing known"
        click.echo(printable(f"  {note['kind']} {note['asked']}: {said}"))
    if found is None:
        click.echo(printable(f"{address.value}: {reason or 'no route'}"))
    else:
        click.echo(printable(f"{address.value}: {found.side} by {found.rule}"))
        click.echo(f"  written {strip_via(found.becomes or '')}, next hop {found.next_hop}")
    return 0 if found else 1


def _goes(address: Address, config: Config, peer: str | None, lookups: _Noted) -> tuple[Destination | None, str | None]:
    """Where it goes, or why not. Raises LookupUnavailable."""
    router = Router(config)
    if peer is None:
        found = router.route(address, lookups=lookups)
        return (found, None) if found is None or found.becomes is not None else (None, str(NO_OPERATOR))
    link = config.peers[peer]
    # By the very code that answers RCPT.
    path = f"<{address.write(address.domain or config.home.domain)}>"
    ours = router.identities(peer)
    answered = receive(router, Side(peer, ours[0], link, ours), f"x@{link.domains[0]}", None, path, (), lookups)
    return answered.destination, None if answered.reply.positive else str(answered.reply)


class _Noted:
    """The look-ups of the configuration, and a note of each: what was asked, and what was answered."""

    def __init__(self, lookups: RouteLookups) -> None:
        self._lookups = lookups
        self.notes: list[dict[str, Any]] = []

    def reach(self, route: ReachRoute, number: str) -> Reached | None:
        """As RouteLookups.reach."""
        return self._noted("reach", route.reach, lambda: self._lookups.reach(route, number))

    def enum(self, asked: Enum, number: str) -> str | None:
        """As RouteLookups.enum."""
        name = f"{domain_of_number(number, asked.zone)} NAPTR"
        return self._noted("enum", name, lambda: self._lookups.enum(asked, number))

    def http(self, asked: Http, number: str) -> str | None:
        """As RouteLookups.http."""
        url = self._lookups.service(asked).url(number)
        return self._noted("http", f"GET {url}", lambda: self._lookups.http(asked, number))

    def _noted(self, kind: str, asked: str, ask: Callable[[], T | None]) -> T | None:
        note: dict[str, Any] = {"kind": kind, "asked": asked, "answer": None, "failed": None}
        self.notes.append(note)
        try:
            answer = ask()
        except LookupUnavailable as error:
            note["failed"] = str(error)
            raise
        note["answer"] = answer._asdict() if isinstance(answer, Reached) else answer
        return answer

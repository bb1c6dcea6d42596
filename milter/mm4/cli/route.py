"""`mm4 route`: where a number goes, and which rule says so."""

from __future__ import annotations

import click

from ..gateway.names import strip_via
from ..gateway.routing import Router
from ..postfix.settings import read_config
from ..protocol.address import Kind, parse_address
from ..protocol.errors import UsageError
from .options import config_option, echo_json, json_option

__all__ = ["route"]


@click.command()
@click.argument("number")
@config_option
@json_option
def route(number: str, config_file: str, as_json: bool) -> int:
    """Say where NUMBER goes and which rule says so. Exit 1 where there is no route."""
    config, _ = read_config(config_file)
    address = parse_address(number, config.home.region)
    if address.kind is not Kind.E164:
        raise UsageError(f"{number!r} is no E.164 number: write a plus and 7 to 15 digits, for example +447700900101")
    found = Router(config).route(address)
    if as_json:
        echo_json(
            {
                "number": address.value,
                "peer": found.side if found else None,
                "next_hop": found.next_hop if found else None,
                "rule": found.rule if found else None,
            }
        )
    elif found is None:
        click.echo(f"{address.value}: no route")
    else:
        click.echo(f"{address.value}: {found.side} by {found.rule}")
        click.echo(f"  written {strip_via(found.becomes or '')}, next hop {found.next_hop}")
    return 0 if found else 1

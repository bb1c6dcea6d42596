"""`mm4 sandbox`: a private Postfix with this gateway, in the foreground.

It prints one JSON line when it takes mail and runs until SIGTERM or SIGINT. Whatever goes wrong before that is one
error, and nothing is left running.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import config_option

__all__ = ["sandbox"]


def _address(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    import ipaddress  # noqa: PLC0415 - the command line starts quickly

    try:
        return value and str(ipaddress.ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address, for example 127.0.0.7") from None


def _endpoints(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    from pydantic import ValidationError  # noqa: PLC0415 - the command line starts quickly

    from ..gateway.host import Service  # noqa: PLC0415 - the command line starts quickly

    try:
        return [str(endpoint) for endpoint in Service.model_validate({"listen": list(values)}).listen]
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


@click.command("sandbox")
@config_option
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where everything is written; may be there already, with the queue of an earlier run.",
)
@click.option(
    "--listen", default=["127.0.0.1:2525"], show_default=True, multiple=True, callback=_endpoints,
    help="Address and port for MM4, IPv6 in brackets; again for more.",
)  # fmt: skip
@click.option("--source", callback=_address, help="Address from which mail is sent out, for example 127.0.0.7.")
def sandbox(config_file: str, folder: Path, listen: list[str], source: str | None) -> None:
    """Run a private Postfix with this gateway until SIGTERM or SIGINT. Needs root.

    Prints one JSON line when it takes mail: where it listens, its configuration, queue, Maildirs and log.
    """
    import json  # noqa: PLC0415 - the command line starts quickly

    from ..postfix.sandbox import run  # noqa: PLC0415 - the command line starts quickly

    def announce(facts: dict[str, Any]) -> None:
        click.echo(json.dumps(facts))  # which flushes

    run(Path(config_file), folder, listen, source, announce)

"""`mm4 lint`: what PDUs break, and what a RES to them would say."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import phonenumbers

from ..protocol.dialect import builtin_names
from ..protocol.errors import UsageError
from ..protocol.pdu import Pdu
from ..protocol.reader import read_message
from .options import echo_json, json_option

__all__ = ["lint", "read_bytes"]


def _region(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise click.BadParameter(f"{value!r} is no ISO 3166 country with a numbering plan, for example DE")
    return value and value.upper()


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--dialect", default="3gpp", show_default=True, type=click.Choice(builtin_names()), help="Whose rules.")
@click.option(
    "--region", metavar="CC", callback=_region, help="Country in which national numbers are read, for example DE."
)
@json_option
def lint(files: tuple[str, ...], dialect: str, region: str | None, as_json: bool) -> int:
    """Read messages (- is standard input) and say what they break.

    Exit 1 if any is not valid MM4.
    """
    invalid = 0
    for name in files:
        pdu = read_message(read_bytes(name), dialect, region)
        invalid += not pdu.valid
        if as_json:
            echo_json(pdu.as_json(name))
        else:
            _print(name, pdu)
    return 1 if invalid else 0


def read_bytes(name: str) -> bytes:
    """A file whole, or standard input for -. Raises UsageError."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


def _print(name: str, pdu: Pdu) -> None:
    state = click.style("valid", fg="green") if pdu.valid else click.style("invalid", fg="red")
    answer = f", a RES would say {pdu.status}" if pdu.status else ""
    click.echo(f"{name}: {pdu.type or (repr(pdu.type_text[:60]) if pdu.type_text else 'no MM4 type')}: {state}{answer}")
    for problem in pdu.problems:
        colour = "red" if problem.severity == "error" else "yellow"
        where = f"{problem.header}: " if problem.header else ""
        source = f" [{problem.source}]" if problem.source else ""
        click.echo(f"  {click.style(problem.severity, fg=colour)} {where}{problem.text}{source}")

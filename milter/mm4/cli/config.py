"""`mm4 config`: the effective configuration with the origin of each value, and the documented example."""

from __future__ import annotations

import re

import click

from ..gateway.configfile import origins
from ..gateway.example import example
from ..postfix.settings import read_config
from .options import config_option, echo_json, echo_rows, json_option

__all__ = ["config"]


@click.group()
def config() -> None:
    """Show the effective configuration, or the documented example."""


@config.command()
@config_option
@json_option
def show(config_file: str, as_json: bool) -> int:
    """Every value in force, and where it comes from: a line of the file, or the default."""
    effective, text = read_config(config_file)
    rows = [(path, _shown(path, value), origin) for path, value, origin in origins(effective, text, config_file)]
    if as_json:
        echo_json({path: {"value": value, "from": origin} for path, value, origin in rows})
        return 0
    echo_rows((path, value, f"({origin})") for path, value, origin in rows)
    return 0


def _shown(path: str, value: object) -> object:
    """A password in the store's URL stays where it is."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", str(value)) if path == "store" else value


@config.command(name="example")
def show_example() -> int:
    """A complete file with every key documented."""
    click.echo(example(), nl=False)
    return 0

"""`mm4 cdr`: charging records, from the store."""

from __future__ import annotations

import sys
from datetime import datetime

import click

from ..postfix.settings import read_config
from ..protocol.charging import FORMATS, RECORD_TYPES, Format, written
from .moments import moment
from .options import config_option, store_of

__all__ = ["cdr"]


@click.group()
def cdr() -> None:
    """Charging records after TS 32.270 (docs/charging.md)."""


@cdr.command()
@click.option("--since", callback=moment, metavar="DATE", help="Records made at this time or later.")
@click.option("--until", callback=moment, metavar="DATE", help="Records made before this time.")
@click.option("--type", "record_type", type=click.Choice([kind.name for kind in RECORD_TYPES], case_sensitive=False),
              help="Records of one type.")  # fmt: skip
@click.option("--peer", metavar="NAME", help="Records of what was exchanged with one peer.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True,
              help="JSON lines, or CSV with a head line.")  # fmt: skip
@config_option
def export(
    since: datetime | None,
    until: datetime | None,
    record_type: str | None,
    peer: str | None,
    form: Format,
    config_file: str,
) -> int:
    """Print the records that the store holds, whether they stand in a file or not, in the form of the files.

    Changes nothing, and may be called as often as one likes. Exit 1 where there is none.
    """
    config, _ = read_config(config_file)
    with store_of(config.store) as store:
        records = store.charges.search(since=since, until=until, type_=record_type, peer=peer)
        lines = 0
        for line in written(records, form):
            sys.stdout.buffer.write(line)
            lines += 1
        sys.stdout.buffer.flush()
    return 0 if lines > (form == "csv") else 1

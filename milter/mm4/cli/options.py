"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from .main import DEFAULT_CONFIG

__all__ = ["config_option", "echo_json", "echo_rows", "json_option", "printable", "store_of"]


def config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--config FILE`."""
    return click.option(
        "--config", "config_file", default=DEFAULT_CONFIG, show_default=True, metavar="FILE",
        help="The configuration file.",
    )(command)  # fmt: skip


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(command)


def echo_json(value: Any) -> None:
    """One JSON object on one line; in ASCII where the terminal, or a file's name, is no UTF-8.

    Controls that JSON would let pass are written as escapes: a peer wrote the text, and it may be read on a terminal.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    if not text.isprintable():
        text = json.dumps(value, default=str).replace("\x7f", "\\u007f")
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    click.echo(text)


def echo_rows(rows: Iterable[Iterable[object]], *, indent: int = 0) -> None:
    """Rows in columns, each as wide as its widest cell; lines are left whole for whoever pipes them on."""
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - slow to load

    table = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        click.echo((" " * indent + "  ".join(cells)).rstrip())


def printable(text: str) -> str:
    """The text without whatever in it would steer a terminal: a peer wrote it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def store_of(url: str) -> Any:
    """The store for reading. Raises StoreError."""
    from ..store.store import Store  # noqa: PLC0415 - SQLAlchemy is slow to load

    return Store.open(url, migrate=False, read_only=True)

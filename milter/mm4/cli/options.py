"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ..protocol.errors import UsageError
from .main import DEFAULT_CONFIG

__all__ = [
    "Columns", "config_option", "echo_json", "echo_rows", "json_option", "needs_root", "printable", "short", "store_of",
]  # fmt: skip


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


class Columns:
    """Rows in columns as they come, however many: a column is as wide as its widest cell so far, its title included."""

    def __init__(self, *titles: str, least: Sequence[int] = ()) -> None:
        """`least` are the widths, from the left, to start with."""
        self._widths = [*least, *[0] * (len(titles) - len(least))]
        self._titles: tuple[str, ...] | None = titles

    def echo(self, *cells: object) -> None:
        """One row; the titles before the first. None is a dash."""
        if self._titles is not None:
            titles, self._titles = self._titles, None
            self.echo(*titles)
        shown = [printable("-" if cell is None or cell == "" else str(cell)) for cell in cells]
        padded = []
        for index, cell in enumerate(shown):
            width = _width(cell)
            self._widths[index] = max(self._widths[index], width)
            padded.append(cell + " " * (self._widths[index] - width))
        click.echo("  ".join(padded).rstrip())


def _width(cell: str) -> int:
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len  # noqa: PLC0415 - slow to load

    return cell_len(cell)


def short(moment: str | datetime | None) -> str | None:
    """A moment for people, in UTC, to the second."""
    if isinstance(moment, datetime):
        moment = moment.astimezone(UTC).isoformat()
    return None if moment is None else moment[:19].replace("T", " ")


def needs_root(what: str) -> None:
    """Raises UsageError unless this is root: Postfix's own commands would say it less clearly."""
    if os.geteuid() != 0:
        raise UsageError(f"{what} has to run as root: only root may change Postfix's queue and tables")


def printable(text: str) -> str:
    """The text without whatever in it would steer a terminal: a peer wrote it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def store_of(url: str, *, write: bool = False) -> Any:
    """The store, for reading unless said otherwise. Raises StoreError, NoStoreError where there is none yet."""
    from ..store.store import Store  # noqa: PLC0415 - SQLAlchemy is slow to load

    return Store.open(url, migrate=False, read_only=not write)

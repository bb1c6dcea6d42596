"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from .main import DEFAULT_CONFIG

__all__ = ["config_option", "echo_json", "echo_rows", "json_option", "store_of"]


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
    """One JSON object on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def echo_rows(rows: Iterable[Iterable[object]], *, indent: int = 0) -> None:
    """Rows in columns. Text of others is shown as it is, never read as markup; a pipe gets whole lines."""
    from rich.console import Console  # noqa: PLC0415 - slow to load
    from rich.padding import Padding  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(_printable(str(cell)), overflow="fold") for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
    console.print(Padding(table, (0, 0, 0, indent), expand=False))


def _printable(text: str) -> str:
    """What a peer wrote must not steer the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def store_of(url: str) -> Any:
    """The store for reading. Raises StoreError."""
    from ..store.store import Store  # noqa: PLC0415 - SQLAlchemy is slow to load

    return Store.open(url, migrate=False, read_only=True)

"""Options that several commands share, and how results are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from .main import DEFAULT_CONFIG

__all__ = ["config_option", "echo_json", "json_option", "store_of"]


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


def store_of(url: str) -> Any:
    """The store for reading. Raises StoreError."""
    from ..store.store import Store  # noqa: PLC0415 - SQLAlchemy is slow to load

    return Store.open(url, migrate=False, read_only=True)

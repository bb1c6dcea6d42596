"""`mm4 trace`: the whole life of a message, from the store."""

from __future__ import annotations

from typing import Any

import click

from ..postfix.settings import read_config
from .options import config_option, echo_json, echo_rows, json_option, store_of

__all__ = ["print_trace", "trace"]


@click.command()
@click.argument("identifier", metavar="ID")
@config_option
@json_option
def trace(identifier: str, config_file: str, as_json: bool) -> int:
    """The life of the message with this message id (or transaction id, queue id): who, when, what was answered.

    Exit 1 where nobody knows it.
    """
    config, _ = read_config(config_file)
    with store_of(config.store) as store:
        transactions = store.trace(identifier)
    if as_json:
        message_id = transactions[0]["message_id"] if transactions else identifier
        echo_json(
            {
                "message_id": message_id,
                "transactions": [{k: v for k, v in t.items() if k != "message_id"} for t in transactions],
            }
        )
    elif transactions:
        print_trace(transactions)
    else:
        click.echo(f"{identifier}: no such message")
    return 0 if transactions else 1


def print_trace(transactions: list[dict[str, Any]]) -> None:
    """The timeline for people."""
    for t in transactions:
        way = "to" if t["direction"] == "out" else "from"
        status = f", {t['status']}" if t["status"] else ""
        says = f" ({t['report']})" if t["report"] else ""
        click.echo(f"{t['type']}{says} {way} {t['peer']}, recipient {t['recipient']}: {t['state']}{status}")
        click.echo(f"  message id {t['message_id']}, transaction id {t['transaction_id']}")
        click.echo(f"  queue id {t['queue_id']} on {t['host']}")
        rows = ((e["at"][:23], e["what"], e["queue_id"] or "", e.get("detail") or "") for e in t["events"])
        echo_rows(rows, indent=2)

"""`mm4 trace`: the whole life of a message, from the store."""

from __future__ import annotations

from typing import Any

import click

from ..postfix.settings import read_config
from ..protocol.address import Kind, parse_address
from .options import config_option, echo_json, echo_rows, json_option, printable, store_of

__all__ = ["number_of", "print_trace", "trace"]


@click.command()
@click.argument("identifier", metavar="ID")
@config_option
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N",
              help="At most so many transactions, the newest.")  # fmt: skip
@json_option
def trace(identifier: str, config_file: str, limit: int, as_json: bool) -> int:
    """The life of the message with this ID: who, when, what was answered.

    ID is a message id, a transaction id, the queue id of the message or of its RES, or a number: then every transaction
    of that subscriber, newest first. Exit 1 where nobody knows it.
    """
    config, _ = read_config(config_file)
    number = None
    with store_of(config.store) as store:
        transactions = store.trace(identifier, limit)
        if not transactions:
            number = number_of(identifier, config.home.region)
            transactions = [] if number is None else store.trace_number(number, limit)
    if as_json and transactions and number is not None:
        echo_json({"number": number, "transactions": transactions})
    elif as_json:
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


def number_of(text: str, region: str | None) -> str | None:
    """A subscriber's number, E.164 or a short code, as the store keeps it; None where the text is none."""
    address = parse_address(text, region)
    return address.key if address.kind in (Kind.E164, Kind.SHORT_CODE) else None


def print_trace(transactions: list[dict[str, Any]]) -> None:
    """The timeline for people."""
    for t in transactions:
        way = "to" if t["direction"] == "out" else "from"
        status = f", {t['status']}" if t["status"] else ""
        says = f" ({t['report']})" if t["report"] else ""
        what = f"{t['type']}{says} {way} {t['peer']}, recipient {t['recipient']}: {t['state']}{status}"
        click.echo(printable(what))
        click.echo(printable(f"  message id {t['message_id']}, transaction id {t['transaction_id']}"))
        click.echo(f"  queue id {t['queue_id']} on {t['host']}")
        rows = ((e["at"][:23], e["what"], e["queue_id"] or "", e.get("detail") or "") for e in t["events"])
        echo_rows(rows, indent=2)

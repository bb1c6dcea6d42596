"""`mm4 stats`: counts of the store, what waits, which peers are paused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from ..postfix.settings import read_config
from .moments import since as since_callback
from .options import Columns, config_option, echo_json, json_option, short, store_of

__all__ = ["stats"]


@click.command()
@config_option
@click.option("--since", metavar="WHEN", callback=since_callback,
              help="Count what was recorded since then: a duration back from now (2h, 7d), or a date.")  # fmt: skip
@json_option
def stats(config_file: str, since: datetime | None, as_json: bool) -> None:
    """Counts by peer, direction, type, state and status; answers owed and awaited, overdue ones, paused peers.

    Reads every transaction: a few seconds where there are 10^6. --since narrows the counts, not what waits.
    """
    from ..postfix.paused import paused_peers  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    paused = paused_peers(config)
    with store_of(config.store) as store:
        found: dict[str, Any] = store.statistics(datetime.now(UTC), since)
    found["paused"] = {name: at.isoformat() for name, at in paused.items()}
    if as_json:
        echo_json(found)
        return
    columns = Columns("PEER", "DIR", "TYPE", "STATE", "STATUS", "COUNT", least=(10, 3, 21, 10, 8))
    for row in found["counts"]:
        columns.echo(
            row["peer"], row["direction"], row["type"].removeprefix("MM4_"), row["state"], row["status"], row["count"]
        )
    if found["counts"]:
        click.echo()
    _waiting("answers owed by us", found["owed"], found["owed_since"])
    _waiting("of ours that wait for the word of an MMSC or a peer", found["held"], found["held_since"])
    _waiting("answers awaited", found["waiting"], found["waiting_since"])
    click.echo(f"of them overdue: {found['overdue']}")
    for name, at in paused.items():
        click.echo(f"{name} is paused since {short(at)} UTC")


def _waiting(what: str, number: int, since: str | None) -> None:
    oldest = f", the oldest since {short(since)} UTC" if since else ""
    click.echo(f"{what}: {number}{oldest}")

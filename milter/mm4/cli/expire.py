"""`mm4 expire`: what is past its expiry leaves Postfix's queue."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from ..postfix.settings import read_config
from .options import config_option, echo_json, echo_rows, json_option

__all__ = ["expire"]


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be returned.")
@config_option
@json_option
def expire(config_file: str, as_json: bool, dry_run: bool) -> int:
    """Return messages that are past their X-Mms-Expiry and still in Postfix's queue, for a timer unit of root's.

    Postfix makes a bounce of each, by which the originator is told. A message whose acknowledgement still waits for
    the responder is left; then exit 1.
    """
    from ..postfix.expiry import Fate  # noqa: PLC0415 - loads the store
    from ..postfix.expiry import expire as run  # noqa: PLC0415
    from ..postfix.hostname import host_of  # noqa: PLC0415
    from ..postfix.instance import Instance  # noqa: PLC0415
    from ..store.store import Store  # noqa: PLC0415

    config, _ = read_config(config_file)
    with Store.open(config.store, migrate=False, read_only=dry_run) as store:
        host = host_of(Path(config.folders.state))
        found = run(Instance(config.folders.postfix), store, host, datetime.now(UTC), dry_run=dry_run)
    if as_json:
        for one in found:
            echo_json(one.as_json())
    elif found:
        echo_rows(
            (one.queue_id, one.peer, f"{one.expires_at:%Y-%m-%d %H:%M:%S}Z", one.fate.value, ", ".join(one.recipients))
            for one in found
        )
    return 1 if any(one.fate is Fate.ANSWER_DUE for one in found) else 0

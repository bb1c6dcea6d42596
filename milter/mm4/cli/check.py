"""`mm4 check`: what is wrong, and the line that mends it."""

from __future__ import annotations

from pathlib import Path

import click

from ..gateway.configfile import place
from ..postfix.settings import read_config
from ..protocol.errors import PostfixError
from .options import config_option, echo_json, json_option

__all__ = ["check"]


@click.command()
@config_option
@json_option
def check(config_file: str, as_json: bool) -> int:
    """Check configuration, store, sockets and Postfix. Changes nothing, sends nothing.

    Exit 1 where something is wrong, 78 where the configuration cannot be read or there is no Postfix.
    """
    from ..postfix.checks import check as run  # noqa: PLC0415 - loads the store and DNS

    config, text = read_config(config_file)
    try:
        findings = run(config)
    except PostfixError as error:
        # Without Postfix nothing else matters; it is a matter of set-up, hence its own exit code.
        raise PostfixError(f"{place(text, str(Path(config_file).absolute()), 'folders.postfix')}: {error}") from None
    for finding in findings:
        if as_json:
            echo_json(finding.as_json())
            continue
        mark, colour = ("ok", "green") if finding.ok else ("warning", "yellow") if finding.warning else ("wrong", "red")
        click.echo(f"{click.style(f'{mark:<8}', fg=colour)}{finding.check}: {finding.text}")
        if finding.fix and not finding.ok:
            click.echo(f"        mend: {finding.fix}")
    return 1 if any(not f.ok and not f.warning for f in findings) else 0

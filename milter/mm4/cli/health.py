"""`mm4 health`."""

from __future__ import annotations

import click

from .options import echo_json, json_option

__all__ = ["health"]


@click.command()
@click.option("--postfix", "folder", default="/etc/postfix", show_default=True, metavar="FOLDER",
              help="The Postfix that mm4 is wired into, by its configuration folder.")  # fmt: skip
@json_option
def health(folder: str, as_json: bool) -> int:
    """Whether milter, responder and Postfix answer now, for whoever watches over them. Quick; reads no YAML.

    Exit 1 where one does not answer, 78 where mm4 is not wired into this Postfix.
    """
    from ..postfix.health import health as run  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly

    found = run(Instance(folder))
    if as_json:
        echo_json({"ok": all(probe.ok for probe in found), "probes": [probe.as_json() for probe in found]})
    else:
        for probe in found:
            click.echo(f"{'ok' if probe.ok else 'wrong':<6}{probe.probe}: {probe.said}")
    return 0 if all(probe.ok for probe in found) else 1

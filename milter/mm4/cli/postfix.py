"""`mm4 postfix`: what goes into the Postfix beside this gateway.

`maps` writes the tables that follow from the YAML, `show` prints the text for main.cf and master.cf. Neither
starts, stops or reloads anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, echo_json, json_option

if TYPE_CHECKING:
    from ..postfix.maps import Wiring

__all__ = ["postfix"]


@click.group("postfix")
def postfix() -> None:
    """What goes into the Postfix beside this gateway."""


@postfix.command("maps")
@config_option
@json_option
def maps_command(config_file: str, as_json: bool) -> None:
    """Write the tables that follow from the YAML into <folders.postfix>/mm4.

    Says which changed. Postfix reads them once a process, so a change needs the reload that is printed.
    """
    from ..postfix import maps  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    folder = maps.folder_of(config)
    changed = maps.write(config, folder)
    reload = f"postfix -c {config.folders.postfix} reload" if changed else None
    if as_json:
        echo_json({"folder": str(folder), "changed": changed, "reload": reload})
        return
    for name in changed:
        click.echo(f"written: {folder / name}")
    click.echo(f"Postfix reads them after: {reload}" if reload else f"{folder}: nothing changed, no reload needed")


@postfix.command("show")
@config_option
@click.option(
    "--wiring",
    type=click.Choice(["gateway", "service"]),
    default="service",
    show_default=True,
    help="A dedicated gateway (whole files), or what is added to an operator's own Postfix.",
)
def show_command(config_file: str, wiring: Wiring) -> None:
    """Print the text for main.cf and master.cf, each line with its reason."""
    from ..postfix import maps  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    folder = Path(config.folders.postfix)
    # The service's lines add to what stands there; without a main.cf they show Postfix's defaults.
    merge = wiring == "service" and (folder / "main.cf").exists()
    present = Instance(folder).raw(*maps.PRESENT) if merge else {}
    for name, lines in (
        ("main.cf", maps.main_lines(config, wiring, present=present)),
        ("master.cf", maps.master_lines(config, wiring)),
    ):
        click.echo(f"# ===== {folder / name} =====\n" + "\n".join(lines).strip() + "\n")

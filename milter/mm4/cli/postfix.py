"""`mm4 postfix`: what goes into the Postfix beside this gateway.

`maps` writes what follows from the YAML, `show` prints the text for main.cf and master.cf. Neither starts or stops
anything, and only `maps --reload` reloads.
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
@click.option("--check", "dry_run", is_flag=True, help="Change nothing; exit 1 where something would be changed.")
@click.option("--reload", "reload", is_flag=True, help="Reload Postfix where something changed and it runs.")
@json_option
def maps_command(config_file: str, dry_run: bool, reload: bool, as_json: bool) -> int:
    """Write what follows from the YAML: the tables in <folders.postfix>/mm4, and the services of single peers.

    Services and paces go into main.cf and master.cf between the lines BEGIN mm4 and END mm4; where these lines do not
    stand, what is lacking is printed, exit 1. Says what changed. Postfix reads it after a reload; nothing here needs a
    restart.
    """
    from ..postfix.instance import Instance  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.update import update  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    done = update(config, dry_run=dry_run)
    command = f"postfix -c {config.folders.postfix} reload" if done.changed or done.lacking else None
    instance = Instance(config.folders.postfix)
    reloaded = bool(reload and not dry_run and done.changed and instance.running())
    if reloaded:
        instance.reload()
    code = 1 if done.lacking or (dry_run and done.changed) else 0
    if as_json:
        echo_json({
            "folder": str(done.folder),
            "changed": list(done.changed),
            "reload": None if reloaded and not done.lacking else command,
            "reloaded": reloaded,
            "add": {name: list(lines) for name, lines in done.lacking},
            "remove": {name: list(keys) for name, keys in done.surplus},
        })  # fmt: skip
        return code
    for name in done.changed:
        path = (done.folder.parent if name.endswith(".cf") else done.folder) / name
        click.echo(f"{'would be written' if dry_run else 'written'}: {path}")
    for name, keys in done.surplus:
        click.echo(f"no longer needed in {done.folder.parent / name}: {', '.join(keys)}")
    for name, lines in done.lacking:
        click.echo(f"to be written into {done.folder.parent / name}, in the place of what stands there for these:")
        click.echo("\n".join(lines) + "\n")
    if reloaded:
        click.echo("Postfix has been reloaded")
    elif command is None:
        click.echo(f"{done.folder}: nothing changed, no reload needed")
    if command is not None and (not reloaded or done.lacking):
        click.echo(f"Postfix reads {'the rest' if reloaded else 'it'} after: {command}")
    return code


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

"""`mm4 postfix`: what goes into the Postfix beside this gateway.

`maps` writes what follows from the YAML, `show` prints the text for main.cf and master.cf; neither starts or stops
anything, and only `maps --reload` reloads. `wire` does it all, and `unwire` takes it out again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import config_option, echo_json, json_option, needs_root

if TYPE_CHECKING:
    from ..postfix.maps import Wiring
    from ..postfix.obstacles import Mode
    from ..postfix.wiring import Outcome

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


_MODES = ["service", "clients", "all"]


@postfix.command("wire")
@config_option
@click.option(
    "--mode",
    type=click.Choice(_MODES),
    help="service: an MM4 line of its own. clients: peers come to the line for ordinary mail, too. all: this Postfix "
    "does nothing else. Default: as it is wired, else service.",
)
@click.option("--check", "dry", is_flag=True, help="Change nothing; exit 1 where something would change.")
@click.option("--diff", "show_diff", is_flag=True, help="Print what changes in each file.")
@click.option("--probe/--no-probe", default=True, show_default=True, help="Ask milter and Postfix whether it works.")
@click.option("--mailbox", metavar="ADDRESS", help="Mailbox of yours for the ordinary message. Default: postmaster.")
@click.option("--force", is_flag=True, help="Replace a file that was edited since --mode all; it is kept beside.")
@json_option
def wire_command(
    config_file: str, mode: Mode | None, dry: bool, show_diff: bool, probe: bool, mailbox: str | None, force: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Put mm4 into the Postfix in folders.postfix, and see that it works (docs/wiring.md). Only for root.

    What stands in the way is said before anything is touched (exit 78). Where a probe fails every file is put back,
    Postfix is restarted, and what was seen is printed (exit 1). A second run changes nothing.
    """
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.wiring import Wiring  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    needs_root("mm4 postfix wire")
    outcome = Wiring(config).wire(mode, dry=dry, probe=probe, mailbox=mailbox, force=force)
    _echo(outcome, as_json=as_json, show_diff=show_diff)
    if not as_json:
        where = f"mode {outcome.mode}, {outcome.instance}"
        if not outcome.ok:
            click.echo(f"not wired: {where}")
        elif not outcome.changed:
            click.echo(f"nothing to change: {where}")
        else:
            click.echo(f"{'would be wired' if dry else 'wired'}: {where}")
    return 1 if not outcome.ok or (dry and outcome.changed) else 0


@postfix.command("unwire")
@config_option
@click.option("--check", "dry", is_flag=True, help="Change nothing; exit 1 where something would change.")
@click.option("--diff", "show_diff", is_flag=True, help="Print what changes in each file.")
@click.option("--probe/--no-probe", default=True, show_default=True, help="See that ordinary mail is taken after it.")
@click.option("--mailbox", metavar="ADDRESS", help="Mailbox of yours that is asked about. Default: postmaster.")
@click.option("--force", is_flag=True, help="Although mail of mm4 waits in the queue, or a file was edited since.")
@json_option
def unwire_command(
    config_file: str, dry: bool, show_diff: bool, probe: bool, mailbox: str | None, force: bool, as_json: bool
) -> int:
    """Give this Postfix back as it was before `wire`. Only for root.

    A file that was edited since keeps the edits and loses what is mm4's. Refused while mail of mm4 waits in the queue.
    """
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.wiring import Wiring  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    needs_root("mm4 postfix unwire")
    outcome = Wiring(config).unwire(dry=dry, force=force, probe=probe, mailbox=mailbox)
    _echo(outcome, as_json=as_json, show_diff=show_diff)
    if not as_json:
        done = ("would be taken out" if dry else "taken out") if outcome.changed else "nothing to change: not wired"
        click.echo(f"{done}: {outcome.instance}")
    return 1 if not outcome.ok or (dry and outcome.changed) else 0


@postfix.command("status")
@config_option
@json_option
def status_command(config_file: str, as_json: bool) -> int:
    """How mm4 is wired, whether the files are as they should be, and whether it works now. Only for root.

    Sends no message. Exit 1 where it is not wired, something would change, or does not answer.
    """
    from ..postfix.settings import read_config  # noqa: PLC0415 - the command line starts quickly
    from ..postfix.wiring import Wiring  # noqa: PLC0415 - the command line starts quickly

    config, _ = read_config(config_file)
    needs_root("mm4 postfix status")
    found = Wiring(config).status()
    if as_json:
        echo_json(found)
        return 0 if found["ok"] else 1
    click.echo(f"{found['instance']}: {'mode ' + found['mode'] if found['mode'] else 'not wired'}, "
               f"Postfix {'runs' if found['running'] else 'does not run'}")  # fmt: skip
    for path in found["changed"]:
        click.echo(f"not as it should be: {path}; mm4 postfix wire --check --diff shows it")
    for note in found["notes"]:
        click.echo(f"note: {note}")
    for probe in found["probes"]:
        click.echo(f"{'ok' if probe['ok'] else 'wrong':<6}{probe['probe']}: {probe['said']}")
    return 0 if found["ok"] else 1


def _echo(outcome: Outcome, *, as_json: bool, show_diff: bool) -> None:
    if as_json:
        found = outcome.as_json()
        echo_json(found if show_diff else {name: value for name, value in found.items() if name != "diff"})
        return
    if show_diff:
        click.echo(outcome.diff, nl=False)
    for path in outcome.changed:
        click.echo(f"changes: {path}")
    if outcome.applied:
        click.echo(f"Postfix: {outcome.applied}")
    for probe in outcome.probes:
        click.echo(f"{'ok' if probe.ok else 'wrong':<6}{probe.probe}: {probe.said}")
    for note in outcome.notes:
        click.echo(f"note: {note}")

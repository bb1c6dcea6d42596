"""`mm4 store`: the store as a whole: what it is, brought up to date, saved, put back, moved to another database."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..gateway.config import Config
from ..gateway.configfile import place
from ..postfix.settings import read_config
from ..protocol.errors import ConfigError, StoreError, StoreRefused, UsageError
from .options import config_option, echo_json, echo_rows, json_option, short

if TYPE_CHECKING:
    from ..store.database import Database

__all__ = ["store"]

_PATIENCE = 600.0
"""Seconds that `migrate` waits for another host that migrates just then."""
_BUSY_SECONDS = 5.0


@click.group()
def store() -> None:
    """The store as a whole: what it is, its schema, a backup, a backup put back, the way to PostgreSQL."""


@store.command("status")
@config_option
@json_option
def status_command(config_file: str, as_json: bool) -> int:
    """Where the store is, its schema, its size, how many rows it has, and what is owed.

    Quick also with 10^6 rows: on PostgreSQL what a table has above 100,000 is the planner's estimate (`~`). Exit 1
    where this version cannot use the store as it is.
    """
    from ..store.condition import condition  # noqa: PLC0415 - SQLAlchemy is slow to load

    config, _ = read_config(config_file)
    found = condition(config.store)
    if as_json:
        echo_json(found)
    else:
        _echo_status(found)
    return 0 if found["usable"] else 1


def _echo_status(found: dict[str, Any]) -> None:
    later = "" if found["revision"] in (None, found["head"]) else f", this version has {found['head']}"
    echo_rows(
        [
            ("store", f"{found['store']} ({found['kind']})"),
            ("schema", f"{found['revision'] or 'none'}{later}"),
            ("usable", "yes" if found["usable"] else f"no: {found['problem']}"),
            ("size", f"{found['bytes']:,} bytes"),
            *((name, f"{'' if row['exact'] else '~'}{row['count']:,} rows") for name, row in found["rows"].items()),
        ]
    )
    if not found["usable"]:
        return
    echo_rows(
        [
            ("oldest transaction", short(found["oldest"]) or "-"),
            ("newest transaction", short(found["newest"]) or "-"),
            ("answers owed by us", _since(found["owed"], found["owed_since"])),
            ("waiting for another's word", _since(found["held"], found["held_since"])),
        ]
    )


def _since(count: int, since: str | None) -> str:
    return f"{count:,}" + (f", the oldest since {short(since)}" if since else "")


@store.command("migrate")
@config_option
@json_option
def migrate_command(config_file: str, as_json: bool) -> None:
    """Bring the schema of the store to that of this version, or make a store where there is none.

    `mm4 serve` does the same at its start; by this it is done before, for several hosts on one store. May be called
    again, and on several hosts at once: the first does it, the others wait. Running daemons of the version before go
    on. Exit 78 where the store is newer than this version can use.
    """
    from ..store.upgrade import bring_up  # noqa: PLC0415 - SQLAlchemy is slow to load

    database = _database(read_config(config_file)[0].store)
    readers = database.engine("scanner")
    try:
        found, now = bring_up(database, readers, _PATIENCE)
    except Exception as error:
        raise database.failure(error) from error
    finally:
        readers.dispose()
    if as_json:
        echo_json({"store": str(database), "from": found, "to": now, "changed": found != now})
    elif found == now:
        click.echo(f"{database}: schema {now}, nothing to do")
    else:
        click.echo(f"{database}: {'made with' if found is None else f'from schema {found} to'} schema {now}")


@store.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@json_option
def backup_command(file: Path, config_file: str, as_json: bool) -> None:
    """Write a copy of the store to FILE while the gateway serves: of one moment, checked, and never over another file.

    For a store of SQLite. Of one on PostgreSQL the server's own programs make copies: exit 78, with the command.
    """
    from ..store.backup import back_up  # noqa: PLC0415 - SQLAlchemy is slow to load

    _, database = _of_sqlite(
        config_file, "pg_dump --format=custom --file={file} --dbname={url}; pg_basebackup copies the whole server", file
    )
    file = file.absolute()
    with _bar() as progress:
        try:
            revision = back_up(database, file, lambda done, total: progress("copying", done, total))
        except FileExistsError:
            raise UsageError(f"{file}: is there already; name a new file") from None
        except OSError as error:
            raise UsageError(f"{file}: cannot be written: {error.strerror}") from None
    size = file.stat().st_size
    if as_json:
        echo_json({"file": str(file), "bytes": size, "revision": revision})
    else:
        click.echo(f"{file}: {size:,} bytes, schema {revision}, checked")


@store.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@json_option
def restore_command(file: Path, config_file: str, as_json: bool) -> None:
    """Put the backup FILE in the place of the store. The store that is there is kept beside it under a dated name.

    Refused (exit 1) while `mm4 serve` runs with this configuration, or anybody has the store open. No message is lost
    by an older store: see docs/operating.md for what it forgets. `mm4 check` speaks of it for a week.
    """
    from ..store.backup import put_back  # noqa: PLC0415 - SQLAlchemy is slow to load

    config, database = _of_sqlite(config_file, "pg_restore --clean --if-exists --dbname={url} {file}", file)
    with _alone(config, config_file), _bar() as progress:
        try:
            done = put_back(
                database, file.absolute(), datetime.now(UTC), lambda part, total: progress("copying", part, total)
            )
        except OSError as error:
            named = error.filename or file
            raise UsageError(f"{named}: {error.strerror}; run as root, or as the store's owner") from None
    if as_json:
        echo_json(
            {
                "store": str(database), "file": str(file.absolute()), "revision": done.revision,
                "taken_at": done.taken_at.isoformat(), "kept": done.kept and str(done.kept),
            }
        )  # fmt: skip
        return
    click.echo(f"{database}: restored from {file}, schema {done.revision}")
    click.echo(f"its last event is of {short(done.taken_at)} UTC; what came later it does not know:")
    click.echo("  no message is lost; a RES of that time may be missing or come twice (mm4 check says so for a week)")
    if config.cdr is not None:
        click.echo("  charging records of that time are missing, or stand in two files (docs/operating.md)")
    if done.kept is not None:
        click.echo(f"the store before is kept as {done.kept}")


@store.command("copy")
@click.option("--to", "url", required=True, metavar="URL", help="The store that is filled: empty, or such a copy.")
@click.option("--finish", is_flag=True, help="The last pass, with the gateway stopped: the copy can be used then.")
@config_option
@json_option
def copy_command(url: str, finish: bool, config_file: str, as_json: bool) -> int:
    """Copy the store from SQLite to PostgreSQL, or back, while the gateway serves.

    Each pass writes what is not yet the same over there, and may be interrupted. Once the gateway is stopped on every
    host `--finish` writes the rest and compares both, table by table (exit 1 where they differ). Then `store:` in the
    YAML gets the new URL. No mm4 serves with a copy that is not finished.
    """
    from ..store.copying import copy  # noqa: PLC0415 - SQLAlchemy is slow to load
    from ..store.database import Database  # noqa: PLC0415 - the same

    config, _ = read_config(config_file)
    source = _database(config.store)
    try:
        target = Database.parse(url, _BUSY_SECONDS, read_only=False)
    except StoreError as error:
        raise UsageError(f"--to: {error}") from None
    if (source.path is None) == (target.path is None):
        raise UsageError(f"--to: {target} is of the same kind as {source}; mm4 store backup, or pg_dump, copies those")
    with _alone(config, config_file) if finish else contextlib.nullcontext(), _bar() as progress:
        found = copy(source, target, finish, datetime.now(UTC), progress)
    verified = all(table.same for table in found) if finish else None
    if as_json:
        echo_json(
            {
                "from": str(source), "to": str(target), "finished": bool(verified), "verified": verified,
                "tables": [asdict(table) for table in found],
            }
        )  # fmt: skip
        return 0 if verified in (None, True) else 1
    same = {None: "", True: "the same", False: "NOT the same"}
    echo_rows(
        [("TABLE", "ROWS", "WRITTEN", "REMOVED", "")]
        + [(t.table, f"{t.rows:,}", f"{t.written:,}", f"{t.removed:,}", same[t.same]) for t in found]
    )
    if verified is None:
        click.echo("next: this again, which is quicker; or stop mm4 (on every host) and add --finish")
    elif verified:
        click.echo(f"done: write the new URL as store: in {config_file}, then start mm4; the old store stays as it is")
    else:
        click.echo("not done: the two differ, and the copy cannot be used; try again", err=True)
    return 0 if verified in (None, True) else 1


def _database(url: str) -> Database:
    from ..store.database import Database  # noqa: PLC0415 - SQLAlchemy is slow to load

    return Database.parse(url, _BUSY_SECONDS, read_only=False)


def _of_sqlite(config_file: str, instead: str, file: Path) -> tuple[Config, Database]:
    """Raises ConfigError, with what to call `instead`, where the store is on PostgreSQL."""
    config, text = read_config(config_file)
    database = _database(config.store)
    if database.path is None:
        command = instead.format(file=shlex.quote(str(file)), url=shlex.quote(database.libpq))
        where = place(text, str(Path(config_file).absolute()), "store")
        raise ConfigError(f"{where}: {database} is on PostgreSQL, whose own programs do this: {command}")
    return config, database


@contextlib.contextmanager
def _alone(config: Config, config_file: str) -> Iterator[None]:
    """No `mm4 serve` with these sockets, from here to the end. Raises StoreRefused while one runs."""
    from ..postfix.owner import Served, own  # noqa: PLC0415 - the command line starts quickly

    folder = Path(config.folders.sockets)
    if not folder.is_dir():  # without it nobody can serve
        yield
        return
    try:
        descriptor = own(folder, "folders.sockets")
    except Served:
        raise StoreRefused(f"mm4 serves with {config_file} ({folder}); stop it first: systemctl stop mm4") from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """Shows how far it is where standard error is a terminal; takes what is done, how far, and of how much."""
    from rich.console import Console  # noqa: PLC0415 - slow to load
    from rich.progress import Progress, TaskID  # noqa: PLC0415 - the same

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _name, _done, _total: None
        return
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True) as bars:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], completed=done, total=total)

        yield show

"""A copy of a store of SQLite while others write it, and such a copy put in a store's place.

A backup is one moment of the store: it is read in one transaction, which with a log (WAL) keeps no writer waiting.
Whatever has its name is whole: written under another one, checked, on disk, and then renamed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from ..protocol.errors import StoreRefused
from .database import Database
from .upgrade import found_revision, usable
from .upkeep import note

__all__ = ["Replaced", "back_up", "put_back"]

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""

_PAGES = 1024
"""Copied at a time; Ctrl-C is heard between."""
_TOGETHER = ("-wal", "-shm", "-journal")
"""Files that belong to one of SQLite by their names."""
_COUNTED = ("charges", "cdr_files")
"""Tables whose row ids never come twice: charging records carry them as sequence numbers."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """What `put_back` did. `kept` is where the store that was there lies now, None where there was none."""

    revision: str
    taken_at: datetime
    """When the last thing that the backup knows happened: about the time at which it was taken."""
    kept: Path | None


def back_up(database: Database, file: Path, progress: Progress) -> str:
    """Write a copy of the store to `file`, which must not be there yet; gives its schema's revision.

    Mode 0600, the owner is the store's where this is root. Raises StoreError, FileExistsError, and OSError.
    """
    assert database.path is not None
    database.check(create=False)
    revision = _revision(database)
    owner = database.path.stat()
    with _beside(file, 0o600, owner) as temporary:
        if file.exists() or file.is_symlink():
            raise FileExistsError(f"{file} is there already")
        try:
            _copy(database.path, temporary, progress)
        except sqlite3.Error as error:
            raise database.failure(error) from error
        _check(temporary, f"{file}: not written, the copy is damaged, and so is the store or the disk of the copy")
        _on_disk(temporary)
        os.link(temporary, file)  # unlike a rename never in the place of another file
        _on_disk(file.parent)
    return revision


def put_back(database: Database, file: Path, at: datetime, progress: Progress) -> Replaced:
    """Put the backup `file` in the place of the store, and that beside it under a name with the time `at`.

    Nobody may serve with the store meanwhile. Owner and mode are those of the one that is there, without one those of
    a new store. The restored one holds a note of what happened. Raises StoreError: the file is no store, damaged, of
    a newer schema, or somebody has the present one open.
    """
    assert database.path is not None
    path = database.path.resolve()
    backup = replace(database, url=database.url.set(database=str(file)), path=file, read_only=True)
    if not file.is_file():
        raise StoreRefused(f"{file}: there is no such file")
    if path.exists() and file.samefile(path):
        raise StoreRefused(f"store {database}: is itself the file to restore from; name a backup")
    revision = _revision(backup)
    there = path.exists()
    owner, mode = (path.stat(), path.stat().st_mode & 0o7777) if there else (path.parent.stat(), 0o640)
    kept = _free_name(path, at) if there else None
    with _beside(path, mode, owner) as temporary:
        try:
            _copy(file, temporary, progress)
        except sqlite3.Error as error:
            raise backup.failure(error) from error
        _check(temporary, f"{file}: is damaged, nothing was changed; restore another backup")
        taken = _last_event(temporary) or at
        with _alone(database, there) as used:
            copy = replace(database, url=database.url.set(database=str(temporary)), path=temporary)
            with copy.engine("migrator").begin() as connection:
                detail = f"from {file}, whose last event is of {taken:%Y-%m-%d %H:%M:%S} UTC"
                note(connection, at, "store restored", detail + (f"; the one before is kept as {kept}" if kept else ""))
            _go_on_counting(temporary, used)
            _on_disk(temporary)
            if kept is not None:
                for suffix in ("", *_TOGETHER):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{path}{suffix}", f"{kept}{suffix}")
            os.rename(temporary, path)
            _on_disk(path.parent)
    return Replaced(revision, taken, kept)


def _revision(database: Database) -> str:
    """The revision of a store that can be used, now or after a migration. Raises StoreError."""
    readers = database.engine("reader")
    try:
        found = found_revision(database, readers)
    finally:
        readers.dispose()
    if found is None:
        raise StoreRefused(f"{database}: is no store of mm4")
    usable(database, found)  # an older one is brought up to date when it is opened
    return found


@contextlib.contextmanager
def _beside(file: Path, mode: int, owner: os.stat_result) -> Iterator[Path]:
    """An empty file in the same folder, which is gone afterwards unless it was renamed. Raises OSError."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            if os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        yield temporary
    finally:
        for suffix in ("", *_TOGETHER):
            Path(f"{temporary}{suffix}").unlink(missing_ok=True)


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True, isolation_level=None)


def _copy(source: Path, target: Path, progress: Progress) -> None:
    with closing(_open(source, "ro")) as reading, closing(_open(target, "rw")) as writing:
        # Holds the moment that is copied: without it a copy in steps begins anew at every commit of others.
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (size,) = reading.execute("PRAGMA page_size").fetchone()
        reading.backup(
            writing, pages=_PAGES, progress=lambda _, left, total: progress((total - left) * size, total * size)
        )
        # What is alone has no log beside it. A store in use turns the log on again when it is opened.
        writing.execute("PRAGMA journal_mode = DELETE")


def _check(copy: Path, damaged: str) -> None:
    """Raises StoreError where what was copied is damaged; `damaged` says what that means."""
    try:
        with closing(_open(copy, "ro")) as connection:
            problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.Error as error:
        problems = [str(error)]
    if problems != ["ok"]:
        raise StoreRefused(f"{damaged}: {'; '.join(problems[:3])}")


def _last_event(copy: Path) -> datetime | None:
    """When the newest thing happened that the store knows. Of any revision."""
    queries = (
        "SELECT recorded_at FROM messages WHERE token = (SELECT token FROM transactions ORDER BY id DESC LIMIT 1)",
        "SELECT at FROM events ORDER BY id DESC LIMIT 1",
    )
    with closing(_open(copy, "ro")) as connection:
        found = [row[0] for query in queries for row in connection.execute(query)]
    return max((datetime.fromisoformat(one).replace(tzinfo=UTC) for one in found), default=None)


@contextlib.contextmanager
def _alone(database: Database, there: bool) -> Iterator[dict[str, int]]:
    """Have the present store as one file that nobody else has open; gives how far its row ids have been used.

    One that is damaged is taken as it stands. Raises StoreError where somebody has it open.
    """
    assert database.path is not None
    if not there:
        yield {}
        return
    with closing(_open(database.path, "rw")) as connection:
        used: dict[str, int] = {}
        try:
            connection.execute(f"PRAGMA busy_timeout = {int(database.busy_seconds * 1000)}")
            # Only the last connection may do this: it moves the log into the file and takes it away.
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            used = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
        except sqlite3.Error as error:
            if database.busy(error):
                raise StoreRefused(f"{database.failure(error)}; nothing was changed") from error
        yield used


def _go_on_counting(copy: Path, used: dict[str, int]) -> None:
    """No row id that the replaced store has given is given again."""
    with closing(_open(copy, "rw")) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in set(_COUNTED) & used.keys() & tables:
            most = "SELECT max(coalesce(max(seq), 0), ?) FROM sqlite_sequence WHERE name = ?"
            (most,) = connection.execute(most, (used[table], table)).fetchone()
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, most))
        connection.execute("PRAGMA journal_mode = DELETE")


def _free_name(path: Path, at: datetime) -> Path:
    """A name beside the store that says when it was replaced. Raises StoreError where it is taken."""
    kept = path.with_name(f"{path.name}.replaced-{at:%Y%m%dT%H%M%SZ}")
    if kept.exists():
        raise StoreRefused(f"store {path}: {kept} is there already; try again in a second")
    return kept


def _on_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

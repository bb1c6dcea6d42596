"""Where the store lies: the URL, the engines opened on it, and what its errors mean to an operator.

SQLite is the norm: WAL, so that reads never wait for the writer, and synchronous=FULL, so that a writer's commit is
on disk. PostgreSQL is taken where psycopg is installed. Every failure becomes a StoreError that names the
place and the cure; a password in the URL is never shown.
"""

from __future__ import annotations

import importlib.util
import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..protocol.errors import Mm4Error, NoStoreError, StoreError

__all__ = ["NO_ANSWER", "Database", "Role"]

Role = Literal["reader", "scanner", "writer", "purger", "migrator"]
"""What a connection is for. A `reader` and a `scanner` can change nothing; the second may take any time.

What a `purger` commits is on disk with the next commit of a `writer`, if not before: a crash may bring back what it has
removed, and it is removed again.
"""

_READING = ("reader", "scanner")
# The hash by which an earlier version, which may still serve on another host, locks too.
_LOCKS = text(
    "SELECT pg_advisory_xact_lock(hash) FROM "
    "(SELECT DISTINCT hashtext(name) AS hash FROM unnest(CAST(:names AS text[])) AS name ORDER BY hash) AS ordered"
)

# SQLite polls a lock with sleeps that grow to 100 ms. A writer lets it poll only this long and then asks
# anew, so that it gets the lock within a few milliseconds of its release.
_SLICE_MS = 3
_SLICES = 20
_URLS = "write sqlite:////absolute/path/mm4.db or postgresql://user@host/name"


@dataclass(frozen=True, slots=True)
class Database:
    """One place where a store lies. `path` is None for PostgreSQL."""

    url: URL
    path: Path | None
    busy_seconds: float
    read_only: bool

    @classmethod
    def parse(cls, url: str, busy_seconds: float, read_only: bool) -> Database:
        """Read the URL without touching anything; raises StoreError if it names no store that we can open."""
        try:
            parsed = make_url(url)
        except ArgumentError:
            # The text itself stays out: it may hold a password.
            raise StoreError(f"the store's URL cannot be read: {_URLS}") from None
        backend = parsed.get_backend_name()
        if backend == "sqlite":
            name = parsed.database or ""
            if parsed.drivername != "sqlite" or parsed.host or not name.startswith("/") or parsed.query:
                raise StoreError(f"store {parsed}: no absolute path; {_URLS}")
            return cls(parsed, Path(name), busy_seconds, read_only)
        if backend == "postgresql":
            if importlib.util.find_spec("psycopg") is None:
                raise StoreError(
                    f"store {parsed.render_as_string()}: PostgreSQL needs psycopg, which is not installed; "
                    "install it (pip install 'mm4-milter[postgresql]', or apt install python3-psycopg) or use SQLite"
                )
            if parsed.query.get("prepare_threshold", "none") != "none":
                raise StoreError(f"store {parsed.render_as_string()}: prepare_threshold can only be none; leave it out")
            return cls(parsed.set(drivername="postgresql+psycopg"), None, busy_seconds, read_only)
        raise StoreError(f"store {parsed.render_as_string()}: unknown kind {backend}; {_URLS}")

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else self._shown.render_as_string()

    @property
    def libpq(self) -> str:
        """The URL as PostgreSQL's own programs take it, without the password."""
        shown = self._shown._replace(password=None).difference_update_query(["prepare_threshold"])
        hosts = shown.query.get("host", ())
        if not isinstance(hosts, str):
            # Ours has host=a:1&host=b:2, libpq host=a,b&port=1,2.
            pairs = [host.partition(":")[::2] for host in hosts]
            named = {"host": ",".join(host for host, _ in pairs), "port": ",".join(port for _, port in pairs)}
            shown = shown.update_query_dict(named)
        return shown.render_as_string()

    @property
    def _shown(self) -> URL:
        """As the operator wrote it, without what libpq would take for a password."""
        return self.url.set(drivername="postgresql").difference_update_query(["password", "sslpassword"])

    def check(self, create: bool) -> bool:
        """Look at folder and file before SQLite does, whose own texts are poor; create a missing file.

        Returns whether the file was there already. Raises StoreError naming what is wrong and its cure, NoStoreError
        where there is none.
        """
        if self.path is None:
            return True
        folder = self.path.parent
        try:
            if not folder.is_dir():
                raise NoStoreError(f"store {self}: folder {folder} does not exist; create it for {_user()}")
            if self.path.is_dir():
                raise StoreError(f"store {self}: is a folder; name a file in it")
            there = self.path.exists()
            if not there and not create:
                raise NoStoreError(f"store {self}: does not exist; start mm4 serve once, or mend store: in the YAML")
            if not self.read_only:
                for thing in (folder, self.path) if there else (folder,):
                    if not os.access(thing, os.W_OK, effective_ids=True):
                        raise StoreError(
                            f"store {self}: {thing} is not writable for {_user()}; "
                            "give it to that user (chown), or run as the user who owns it"
                        )
            if not there:
                # It holds subscribers' numbers: not for everybody. SQLite's -wal and -shm take the same mode.
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
                try:
                    if os.geteuid() == 0:
                        # Root ran a command before the service, whose folder this is, ever started.
                        owner = folder.stat()
                        os.fchown(descriptor, owner.st_uid, owner.st_gid)
                finally:
                    os.close(descriptor)
        except FileExistsError:
            return True  # another process was quicker
        except OSError as error:
            raise StoreError(f"store {self}: {error.strerror}; check the folder {folder} for {_user()}") from error
        return there

    def engine(self, role: Role) -> Engine:
        """Open nothing yet; give the engine whose connections are set up for the role.

        A `writer` and a `purger` take the write lock when they begin, and a `migrator` does
        the same without foreign keys (SQLite rebuilds tables by dropping the old one).
        """
        pool: dict[str, Any] = (
            {"poolclass": QueuePool, "pool_size": 5, "max_overflow": 15, "pool_timeout": self.busy_seconds}
            if role in _READING
            else {"poolclass": NullPool}
        )
        if self.path is None:
            return self._postgresql(role, pool)
        engine = create_engine(self.url, creator=lambda: self._sqlite(role), **pool)
        begin = "BEGIN" if role in _READING else "BEGIN IMMEDIATE"

        def do_begin(connection: Any) -> None:
            # Here, because an exception that goes through SQLAlchemy takes as long as a message does.
            for _ in range(_SLICES):
                try:
                    connection.execute(begin)
                    return
                except sqlite3.OperationalError as error:
                    if not self.busy(error):
                        raise
            connection.execute(begin)

        # Not a listener for "begin": an engine with any listener looks for more of them at every statement, which
        # costs a third of the time that a statement takes.
        engine.dialect.do_begin = do_begin  # type: ignore[method-assign,assignment]  # the hook that listeners stand in for
        return engine

    def checkpoint(self) -> int:
        """Move what SQLite's log holds into the file, without keeping anybody waiting; gives the pages that it keeps.

        0 where all are in the file, for then the next write begins the log anew. They are not while somebody reads
        what was before them. 0 for PostgreSQL, which does this itself. Raises the driver's errors.
        """
        if self.path is None:
            return 0
        with closing(self._sqlite("migrator")) as connection:
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return int(pages) if pages > moved else 0

    def _sqlite(self, role: Role) -> sqlite3.Connection:
        # mode=rw: a file that somebody took away is an error, not a new empty store.
        mode = "ro" if self.read_only else "rw"
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}",
            uri=True,
            timeout=self.busy_seconds,
            isolation_level=None,  # BEGIN is ours alone; the driver's own guesses are switched off
            check_same_thread=False,
        )
        try:
            if role in _READING:
                connection.execute("PRAGMA query_only = ON")
            else:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute(f"PRAGMA synchronous = {'NORMAL' if role == 'purger' else 'FULL'}")
                connection.execute(f"PRAGMA busy_timeout = {_SLICE_MS}")
            if role in ("writer", "purger"):
                connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _postgresql(self, role: Role, pool: dict[str, Any]) -> Engine:
        from .sessions import open_engine  # noqa: PLC0415  psycopg need not be installed

        return open_engine(self.url, role, self.busy_seconds, pool)

    def lock(self, connection: Connection, keys: Iterable[str]) -> None:
        """Take the locks of these names, until the transaction ends. SQLite needs none: it has the one write lock.

        All of them at once and in one order, so that no two transactions that do so wait for each other.
        """
        names = list(keys)
        if names and self.path is None:
            connection.execute(_LOCKS, {"names": names})

    def busy(self, error: BaseException) -> bool:
        """Whether the error only says that another process holds the lock."""
        return _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def undone(self, error: BaseException) -> bool:
        """Whether nothing of a transaction was kept for a reason that does not lie in what was being written.

        That is: PostgreSQL broke the connection, undid one of two transactions that waited for each other, would
        not wait longer for a lock of another, or takes no writes (any more) on this connection.
        """
        if not isinstance(error, DBAPIError):
            return False
        return error.connection_invalidated or _sqlstate(error) in _UNDONE

    def waited(self, error: BaseException) -> bool:
        """Whether a lock, the statement or PostgreSQL's answer took too long."""
        return _sqlstate(error) in (_LOCK_TIMEOUT, _STATEMENT_TIMEOUT, NO_ANSWER)

    def failure(self, error: BaseException) -> StoreError:
        """Say what an error of the database means, and the cure; one of ours keeps its own words."""
        if isinstance(error, Mm4Error):
            return error if isinstance(error, StoreError) else StoreError(str(error))
        if isinstance(error, PoolTimeoutError):
            return StoreError(f"store {self}: all reading connections were in use for {self.busy_seconds:g} s")
        if self.path is None and (meaning := self._meaning(error)) is not None:
            return StoreError(f"store {self}: {meaning}")
        code = _sqlite_code(error)
        if code in _MEANINGS:
            meaning = _MEANINGS[code].format(path=self, user=_user(), seconds=f"{self.busy_seconds:g}")
            return StoreError(f"store {self}: {meaning}")
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        lines = str(cause).splitlines()
        return StoreError(f"store {self}: {type(cause).__name__}: {lines[0] if lines else 'no text'}")

    def _meaning(self, error: BaseException) -> str | None:
        """What an error of PostgreSQL means, where it is one that an operator can mend."""
        state = _sqlstate(error)
        if state in _STATES:
            return _STATES[state].format(seconds=f"{self.busy_seconds:g}")
        # psycopg gives no state where it cannot connect, whatever the server said.
        if isinstance(error, DBAPIError) and (error.connection_invalidated or isinstance(error, OperationalError)):
            lines = str(error.orig).splitlines() or ["no text"]
            if any(line.endswith(_NOT_PRIMARY) for line in lines):
                return _STATES[_READ_ONLY]
            return f"no connection to PostgreSQL ({lines[0]}); start it, or mend store: in the YAML"
        return None


_LOCKED = "another process has held its lock for more than {seconds} s; fuser -v {path} shows which"
_MEANINGS = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: "no room to write; free space on its file system",
    sqlite3.SQLITE_READONLY: "not writable for {user}; check owner and mode of the file and its folder",
    sqlite3.SQLITE_PERM: "not accessible for {user}; check owner and mode of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check that it is there and that {user} may use its folder",
    sqlite3.SQLITE_IOERR: "input/output error; check the disk, its free space and the kernel's log",
    sqlite3.SQLITE_CORRUPT: "is damaged; stop mm4, keep a copy of the file and restore the last backup",
    sqlite3.SQLITE_NOTADB: "is no SQLite database; name another file, or move this one away",
}


# PostgreSQL's SQLSTATE codes: appendix A of its manual.
_DEADLOCK, _SERIALIZATION, _LOCK_TIMEOUT, _STATEMENT_TIMEOUT = "40P01", "40001", "55P03", "57014"
_READ_ONLY = "25006"
_UNDONE = (_DEADLOCK, _SERIALIZATION, _LOCK_TIMEOUT, _STATEMENT_TIMEOUT, _READ_ONLY)
NO_ANSWER = "08006"
"""Ours, for a session that was given up because nothing came back: PostgreSQL itself can say nothing then."""
# libpq's words (src/interfaces/libpq/fe-connect.c) where target_session_attrs finds another kind of server.
_NOT_PRIMARY = ("session is read-only", "server is in hot standby mode")
_WAITED = "another process has held a lock for more than {seconds} s; pg_stat_activity shows which"
_STATES = {
    _LOCK_TIMEOUT: _WAITED,
    _STATEMENT_TIMEOUT: "a statement took too long and was given up; look at PostgreSQL's load and disk",
    "53100": "no room to write; free space on the file system of PostgreSQL",
    _READ_ONLY: "PostgreSQL takes no writes (a standby?); name the primary, or both hosts, in store:",
    "42501": "the role lacks a right; make it the owner of the database",
}


def _sqlstate(error: BaseException) -> str | None:
    """Give PostgreSQL's code, or None where there is none."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlstate", None)


def _sqlite_code(error: BaseException) -> int | None:
    """Give the primary result code, or None where the error is not SQLite's."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None) if isinstance(cause, sqlite3.Error) else None
    return None if code is None else code & 0xFF


def _user() -> str:
    return f"user id {os.geteuid()}"

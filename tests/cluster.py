"""A private PostgreSQL for tests: its own folder, a UNIX socket in it and no TCP port unless it has a host of its own,
so that any number run at once.

Debian's server binaries are started directly; a cluster of the system is neither used nor touched. initdb and
postgres refuse root, so under root they run as nobody.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from sqlalchemy import Connection, event, text

from mm4.store import Store
from mm4.store.database import Database

__all__ = ["Cluster", "binaries", "execute", "plan", "plans"]

SECONDS = 60.0
"""Longest wait for a server that starts or stops."""
_NOBODY = 65534


def binaries() -> Path | None:
    """The folder of Debian's newest server programs; None where none are installed."""
    found = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(found, key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0), default=None)
    return newest.parent if newest is not None else None


class Cluster:
    """One server. `database` makes a store's database in it, owned by a role without further rights.

    Its folder is made in `parent`, or where temporary ones are; `settings` are PostgreSQL's. With `of` it is a standby of
    that one, and holds what that holds, until it is promoted. On another host it is reached at `address` too, by all
    who are on its network, and `within` begins the commands that run there.
    """

    def __init__(
        self, *, fsync: bool = False, of: Cluster | None = None, parent: Path | None = None, address: str = "",
        within: tuple[str, ...] = (), **settings: object,
    ) -> None:  # fmt: skip
        programs = binaries()
        assert programs is not None, "no /usr/lib/postgresql/*/bin/initdb: .ci/setup installs Debian's postgresql"
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="mm4-pg-", dir=parent))
        self.folder.chmod(0o755)
        self.data = self.folder / "data"
        self._settings = {
            "listen_addresses": address, "unix_socket_directories": self.folder, "fsync": "on" if fsync else "off",
            "max_connections": 200, "shared_buffers": "16MB", "jit": "off", "autovacuum": "off",
            **settings,
        }  # fmt: skip
        self.address = address
        self._within = within
        self._of = of
        self._process: subprocess.Popen[bytes] | None = None
        self._template: str | None = None

    def __enter__(self) -> Cluster:
        if os.geteuid() == 0:
            os.chown(self.folder, _NOBODY, _NOBODY)
        command = self._command("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        if self._of is not None:
            primary = f"host={self._of.address or self._of.folder} user=postgres application_name=standby"
            command = self._command("pg_basebackup", "-D", self.data, "-R", "-d", primary, "--checkpoint=fast", "--no-sync")
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert made.returncode == 0, f"{command}: {made.stderr}"
        if self.address and self._of is None:
            with (self.data / "pg_hba.conf").open("a") as allowed:
                allowed.write("host all all samenet trust\nhost replication all samenet trust\n")
        self.start()
        if self._of is not None:
            self._of.replicate()
            return self
        self.run("CREATE ROLE mm4 LOGIN")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _command(self, program: str, *arguments: object) -> list[str]:
        # The kernel stops the server if the tests are killed.
        who = ["--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups"] if os.geteuid() == 0 else []
        return [*self._within, "setpriv", *who, "--pdeathsig", "INT", str(self.programs / program), *map(str, arguments)]

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; again after a stop, with what it held."""
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", self.data, *settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        end = time.monotonic() + SECONDS
        while True:
            try:
                self.run("SELECT 1")
                return
            except psycopg.OperationalError:
                log_text = (self.folder / "log").read_text("utf-8", "replace")
                assert self._process.poll() is None, f"postgres ended: {log_text}"
                assert time.monotonic() < end, f"postgres does not answer: {log_text}"
                time.sleep(0.02)

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its sessions first, SIGQUIT drops everything as a crash would."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def replicate(self) -> None:
        """From now on a commit is on the standby too before it is one."""
        self.run("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        self.run("SELECT pg_reload_conf()")
        end = time.monotonic() + SECONDS
        while self.run("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < end, "the standby does not follow"
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a standby a primary."""
        assert self.run("SELECT pg_promote()") == [(True,)]

    def run(self, sql: str, database: str = "postgres", user: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement as the superuser, or somebody else; gives the rows."""
        with psycopg.connect(
            host=str(self.folder), dbname=database, user=user, autocommit=True, connect_timeout=10
        ) as connection:
            answer = connection.execute(sql.encode())
            return answer.fetchall() if answer.description else []

    def url(self, database: str) -> str:
        """As `store:` names it."""
        return f"postgresql://mm4@/{database}?host={self.folder}"

    def database(self, *, empty: bool = False) -> str:
        """A new database, with the schema of the store unless `empty`; gives its URL."""
        if self._template is None and not empty:
            # Copying one is quicker than migrating anew for each test.
            self._template = self._create("template0")
            Store.open(self.url(self._template)).close()
        return self.url(self._create("template0" if empty else self._template or ""))

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.run(f"DROP DATABASE {url.partition('@/')[2].partition('?')[0]} WITH (FORCE)")

    def _create(self, template: str) -> str:
        name = f"mm4_{secrets.token_hex(6)}"
        self.run(f"CREATE DATABASE {name} OWNER mm4 TEMPLATE {template}")
        return name


def execute(url: str, sql: str, **values: Any) -> list[Any]:
    """One statement in a store's database, behind the store's back; gives the rows."""
    engine = Database.parse(url, 10, read_only=False).engine("migrator")
    with engine.begin() as connection:
        answer = connection.execute(text(sql), values)
        return list(answer.all()) if answer.returns_rows else []


def plan(store: Store, ask: Callable[[Connection], object]) -> str:
    """How the database goes about the last statement of `ask`; PostgreSQL as with many rows, when an index pays."""
    return plans(store, ask)[-1][1]


def plans(store: Store, ask: Callable[[Connection], object]) -> list[tuple[str, str]]:
    """Every statement of `ask`, with its plan as `plan` gives it."""
    asked: list[tuple[str, Any]] = []
    with store._database.engine("migrator").connect() as connection:
        explain = "EXPLAIN QUERY PLAN "
        if connection.dialect.name == "postgresql":
            explain = "EXPLAIN "
            for dear in ("seqscan", "sort"):
                connection.exec_driver_sql(f"SET LOCAL enable_{dear} = off")
        event.listen(connection, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
        ask(connection)
        return [(s, str(connection.exec_driver_sql(explain + s, v).all())) for s, v in list(asked)]

"""Brings the schema to the revision that this code knows; a newer one of the same generation it uses as it is.

Opening a store is part of every start, so where nothing is to do it costs one query, and a new store gets its tables as
they are today. Alembic is imported only where there are older ones. Several processes may open a new file at once: the
first takes the write lock and migrates in one transaction, the others then find the work done. A failure leaves the
schema as it was.
"""

from __future__ import annotations

import sqlite3
import time

from sqlalchemy import Column, Connection, Engine, MetaData, PrimaryKeyConstraint, String, Table, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ..protocol.errors import NoStoreError, StoreError
from .database import Database
from .schema import REVISION, REVISIONS, generation, metadata

__all__ = ["COPYING", "bring_up", "found_revision", "prepare", "usable"]

COPYING = f"copying {REVISION}"
"""What stands in the place of a revision while `copying` fills a store: no version of mm4 serves with a half of one."""

_VERSION = text("SELECT version_num FROM alembic_version")
# As Alembic makes it.
_VERSIONS = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
_PATIENCE = text("SELECT set_config('lock_timeout', :value, true)")
_ADVISORY_LOCK = 0x6D6D34  # "mm4"; the same number in every process, and nobody else's

_UNDEFINED_TABLE = "42P01"
"""PostgreSQL's SQLSTATE for a table that is not there."""


def prepare(database: Database, readers: Engine, migrate: bool) -> None:
    """Make sure that the schema is ours; with `migrate`, create it or bring it up to date.

    Raises StoreError where it is missing or old and may not be changed, of a newer generation than this code, or
    where the database belongs to something else.
    """
    if migrate:
        bring_up(database, readers)
        return
    database.check(create=False)
    found = found_revision(database, readers)
    if not usable(database, found):
        state = "has no schema" if found is None else f"has schema {found}, older than {REVISION}"
        raise NoStoreError(f"store {database}: {state}; start mm4 serve once, or run mm4 store migrate")


def bring_up(database: Database, readers: Engine, patience: float | None = None) -> tuple[str | None, str]:
    """Create the schema or bring it up to date; gives the revision that was found and the one that is there now.

    They are the same where nothing was to do. Another process that migrates at this moment is waited for: `patience`
    seconds, by default as long as for any lock. Raises StoreError as `prepare`.
    """
    if database.check(create=True):
        found = found_revision(database, readers)
        if found is not None and usable(database, found):
            return found, found
    return _upgrade(database, database.busy_seconds if patience is None else patience)


def found_revision(database: Database, readers: Engine) -> str | None:
    """Give the revision with one query, or None where there is no version table."""
    try:
        with readers.connect() as connection:
            return connection.execute(_VERSION).scalar()
    except DBAPIError as error:
        # SQLite reports a missing table as a plain error.
        if (
            getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
            or getattr(error.orig, "sqlstate", None) == _UNDEFINED_TABLE
        ):
            return None
        raise database.failure(error) from error
    except SQLAlchemyError as error:
        raise database.failure(error) from error


def usable(database: Database, found: str | None) -> bool:
    """Whether the schema is ours, or was brought further by a newer mm4 of this generation (see `schema`).

    False where it is missing or older. Raises NoStoreError where no migration helps.
    """
    if found is None or found in REVISIONS:
        return found == REVISION
    if found.startswith("copying"):
        raise NoStoreError(
            f"store {database}: is a copy that is not finished; with the gateway stopped, "
            "mm4 store copy --finish --to this store ends it"
        )
    if generation(found) != generation(REVISION):
        raise NoStoreError(
            f"store {database}: its schema {found} is newer than this mm4, which knows {REVISION}; "
            "install the newer mm4 again, or restore a backup from before the upgrade"
        )
    return True


def _upgrade(database: Database, patience: float) -> tuple[str | None, str]:
    """Migrate under the write lock; waits for another process that does the same."""
    engine = database.engine("migrator")
    deadline = time.monotonic() + patience
    while True:
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    # For this one lock: what serves meanwhile must not have to wait as long behind one of a table.
                    usual = connection.execute(text("SHOW lock_timeout")).scalar_one()
                    connection.execute(_PATIENCE, {"value": f"{max(1, round(patience * 1000))}ms"})
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                    connection.execute(_PATIENCE, {"value": usual})
                return _migrate(database, connection)
        except StoreError:
            raise
        except Exception as error:
            # Two processes that turn a new file to WAL at once: SQLite tells one of them "busy" at once.
            if not database.busy(error) or time.monotonic() >= deadline:
                raise database.failure(error) from error
            time.sleep(0.002)


def _migrate(database: Database, connection: Connection) -> tuple[str | None, str]:
    tables = inspect(connection).get_table_names()
    found = connection.execute(_VERSION).scalar() if "alembic_version" in tables else None
    if found is not None and usable(database, found):
        return found, found
    if found is None and set(tables) - {"alembic_version"}:
        raise StoreError(
            f"store {database}: holds tables of something else ({', '.join(sorted(tables)[:3])}); "
            "give mm4 a database of its own"
        )
    if found is None:
        metadata.create_all(connection)
        _VERSIONS.create(connection, checkfirst=True)
        connection.execute(_VERSIONS.insert().values(version_num=REVISION))
        return None, REVISION
    # Imported here because it costs more than the rest of the opening (see the top of this module).
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "mm4.store:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return found, REVISION

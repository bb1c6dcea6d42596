"""What a store is: of which revision, how full, how large, and what is owed. Reads only, and quickly at 10^6 rows.

SQLite counts its rows. PostgreSQL counts up to `COUNTED` of a table and gives the planner's estimate beyond: it would
read every row, however many, for an exact number.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Table, func, inspect, literal, select, text

from ..protocol.errors import NoStoreError
from .database import Database
from .listing import owing
from .schema import REVISION, messages, metadata, transactions
from .upgrade import found_revision, usable

__all__ = ["COUNTED", "condition"]

COUNTED = 100_000
"""Rows of a table that PostgreSQL counts one by one."""

_ESTIMATE = text("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(:name)")
_DATABASE_SIZE = text("SELECT pg_database_size(current_database())")


def condition(url: str) -> dict[str, Any]:
    """What `mm4 store status --json` prints. Raises StoreError, NoStoreError where there is none."""
    database = Database.parse(url, 5.0, read_only=True)
    database.check(create=False)
    readers = database.engine("scanner")
    try:
        found = found_revision(database, readers)
        problem = _problem(database, found)
        with readers.connect() as connection:
            there = set(inspect(connection).get_table_names())
            rows = {table.name: _count(connection, table) for table in metadata.sorted_tables if table.name in there}
            whole = problem is None
            first, last = _extent(connection) if whole else (None, None)
            return {
                "kind": connection.dialect.name,
                "store": str(database),
                "revision": found,
                "head": REVISION,
                "usable": whole,
                "problem": problem,
                "bytes": _size(database, connection),
                "rows": {name: {"count": count, "exact": exact} for name, (count, exact) in rows.items()},
                "oldest": first,
                "newest": last,
                **(owing(connection) if whole else dict.fromkeys(("owed", "owed_since", "held", "held_since"))),
            }
    except Exception as error:
        raise database.failure(error) from error
    finally:
        readers.dispose()


def _problem(database: Database, found: str | None) -> str | None:
    """Why this version cannot use the store as it is; None where it can."""
    try:
        if usable(database, found):
            return None
    except NoStoreError as error:
        return str(error)
    state = "no schema" if found is None else f"schema {found}, older than {REVISION}"
    return f"{state}: mm4 store migrate, or the start of mm4 serve, brings it up to date"


def _count(connection: Connection, table: Table) -> tuple[int, bool]:
    """How many rows a table has, and whether that is exact."""
    if connection.dialect.name != "postgresql":
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one()), True
    bounded = select(literal(1)).select_from(table).limit(COUNTED + 1).subquery()
    count = int(connection.execute(select(func.count()).select_from(bounded)).scalar_one())
    if count <= COUNTED:
        return count, True
    # Never analysed: it says -1, or what it was at another time.
    return max(count, int(connection.execute(_ESTIMATE, {"name": table.name}).scalar() or 0)), False


def _extent(connection: Connection) -> tuple[str | None, str | None]:
    """When the first and the last of the transactions that are there were recorded."""
    recorded = select(messages.c.recorded_at).join(transactions, messages.c.token == transactions.c.token).limit(1)
    ends = (recorded.order_by(transactions.c.id), recorded.order_by(transactions.c.id.desc()))
    first, last = (connection.execute(query).scalar() for query in ends)
    return first and first.isoformat(), last and last.isoformat()


def _size(database: Database, connection: Connection) -> int:
    """Bytes on disk; of SQLite with what has not been moved from the log into the file yet."""
    if database.path is None:
        return int(connection.execute(_DATABASE_SIZE).scalar_one())
    size = database.path.stat().st_size
    with suppress(FileNotFoundError):
        size += database.path.with_name(f"{database.path.name}-wal").stat().st_size
    return size

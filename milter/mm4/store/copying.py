"""A store copied to the other kind of database while it serves, in passes, of which the last finds nobody who writes.

A pass compares all rows by their keys, a batch a transaction, and writes what is not yet the same. So it may be
interrupted anywhere, and the next one finds what was added or changed meanwhile. The last pass also removes what is
gone, takes over how far row ids have been used, and compares both sides, table by table, after the copy has committed.
Until that has gone well the copy carries a mark in the place of its revision, and no version of mm4 serves with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    text,
    update,
)  # fmt: skip

from ..protocol.errors import StoreRefused
from .database import Database
from .schema import REVISION, batches, events, messages, metadata, transactions
from .upgrade import COPYING, bring_up, found_revision, usable
from .upkeep import note

__all__ = ["Copied", "copy"]

_BATCH = 1000
_ADVISORY_LOCK = 0x6D6D35
"""The number after that of migrations."""
_TABLES: Sequence[Table] = metadata.sorted_tables
"""Parents first."""
_PARENTS: dict[Table, tuple[Column[Any], Column[Any]]] = {
    transactions: (transactions.c.token, messages.c.token),
    events: (events.c.transaction_row, transactions.c.id),
}
_MARK = text("UPDATE alembic_version SET version_num = :revision")
# Who is connected, whatever this role may see of them; the server's own processes have no user.
_OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usesysid IS NOT NULL "
    "AND pid <> pg_backend_pid()"
)
_LOCK_ALL = text("LOCK TABLE " + ", ".join(table.name for table in _TABLES) + " IN SHARE MODE")

Progress = Callable[[str, int, int], None]
"""Told of a table how many rows are done, and of how many."""
_Read = Callable[[Select[Any]], Sequence[Row[Any]]]


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of one table in a pass."""

    table: str
    rows: int
    """Of the source."""
    written: int
    """New ones and changed ones."""
    removed: int
    same: bool | None
    """Whether both sides were then found to hold the same rows, by count and checksum; None but in the last pass."""


def copy(source: Database, target: Database, finish: bool, at: datetime, progress: Progress) -> list[Copied]:
    """Make one pass, with `finish` the last one, during which nobody may serve with either store.

    One of the two is SQLite and the other PostgreSQL. Raises StoreError: the target holds something else, somebody uses
    the source (with `finish`), either is out of reach.
    """
    if (source.path is None) == (target.path is None):
        raise StoreRefused(f"store {target}: is of the same kind as {source}; mm4 store backup and pg_dump copy those")
    readers = source.engine("scanner")
    try:
        _check_source(source, readers)
        _prepare(target)
        with _writing(target) as writing:
            if not finish:
                one = _Pass(_reading(source, readers), writing, progress)
                return [one.table(table, last=False) for table in _TABLES]
            readers.dispose()
            with _still(source) as still:
                last = _Pass(_translated(source, lambda query: still.execute(query).all()), writing, progress)
                found = [last.table(table, last=True) for table in _TABLES]
                if all(table.same for table in found):
                    with writing.begin():
                        _take_over_row_ids(still, writing)
                        writing.execute(_MARK, {"revision": REVISION})
                    note(still, at, "store copied", f"to {target}")
                    still.commit()
                return found
    except Exception as error:
        # The source's own errors have been translated.
        raise target.failure(error) from error
    finally:
        readers.dispose()


class _Pass:
    """One look at all rows. `read` asks the source, `target` is written."""

    def __init__(self, read: _Read, target: Connection, progress: Progress) -> None:
        self._read = read
        self._target = target
        self._progress = progress

    def table(self, table: Table, last: bool) -> Copied:
        """Make a table of the target as it is in the source; `last`: exactly, and see that it is so."""
        (key,) = table.primary_key.columns
        (total,) = self._read(select(func.count()).select_from(table))[0]
        done = written = checksum = 0
        for rows in _pages(self._read, select(table), key):
            written += self._write(table, key, rows, last)
            done += len(rows)
            checksum += _checksum(rows)
            self._progress(table.name, done, max(done, total))
        if not last:
            return Copied(table.name, done, written, 0, None)
        removed = self._remove(table, key, done)
        count = theirs = 0
        for rows in _pages(self._ask, select(table), key):
            count += len(rows)
            theirs += _checksum(rows)
        return Copied(table.name, done, written, removed, (done, checksum) == (count, theirs))

    def _ask(self, query: Select[Any]) -> Sequence[Row[Any]]:
        with self._target.begin():
            return self._target.execute(query).all()

    def _write(self, table: Table, key: Column[Any], rows: Sequence[Row[Any]], last: bool) -> int:
        """Write what is not there yet, or not the same; gives how many rows."""
        at = _position(key)
        with self._target.begin():
            # From the first key to the last is quick to ask for. One by one only where the two may sort otherwise.
            between = select(table).where(key.between(rows[0][at], rows[-1][at])).limit(2 * _BATCH)
            there = {row[at]: row for row in self._target.execute(between)}
            unsure = [row[at] for row in rows if row[at] not in there] if key.type.python_type is str else []
            for part in batches(unsure):
                there |= {row[at]: row for row in self._target.execute(select(table).where(key.in_(part)))}
            if not last:
                rows = self._with_parents(table, rows)
            new = [dict(row._mapping) for row in rows if row[at] not in there]
            changed = [row for row in rows if there.get(row[at], row) != row]
            if new:
                self._target.execute(insert(table), new)
            if changed:
                values: dict[str, Any] = {
                    column.name: bindparam(f"new_{column.name}") for column in table.columns if column is not key
                }
                self._target.execute(
                    update(table).where(key == bindparam("the_key")).values(values),
                    [
                        {"the_key": row[at], **{f"new_{name}": row._mapping[name] for name in values}}
                        for row in changed
                    ],
                )
        return len(new) + len(changed)

    def _with_parents(self, table: Table, rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
        """Without those whose parent came after the pass had gone by: the next pass has both."""
        if table not in _PARENTS:
            return rows
        child, parent = _PARENTS[table]
        at = _position(child)
        named = {row[at] for row in rows} - {None}
        known = {
            found
            for part in batches(sorted(named))
            for found in self._target.execute(select(parent).where(parent.in_(part))).scalars()
        }
        return [row for row in rows if row[at] is None or row[at] in known]

    def _remove(self, table: Table, key: Column[Any], rows: int) -> int:
        """Delete what the source, with so many rows, has no more; all of those are in the target."""
        removed = 0
        (count,) = self._ask(select(func.count()).select_from(table))[0]
        if count == rows:
            return 0
        for page in _pages(self._ask, select(key), key):
            for part in batches([row[0] for row in page]):
                gone = set(part) - {row[0] for row in self._read(select(key).where(key.in_(part)))}
                if gone:
                    with self._target.begin():
                        self._target.execute(delete(table).where(key.in_(gone)))
                    removed += len(gone)
        return removed


def _position(column: Column[Any]) -> int:
    return list(column.table.columns).index(column)


def _pages(read: _Read, query: Select[Any], key: Column[Any]) -> Iterator[Sequence[Row[Any]]]:
    """All rows of a query in the order of the key, a batch a read."""
    query = query.order_by(key).limit(_BATCH)
    rows = read(query)
    while rows:
        yield rows
        rows = read(query.where(key > rows[-1]._mapping[key.name])) if len(rows) == _BATCH else ()


def _checksum(rows: Sequence[Row[Any]]) -> int:
    """A sum, so that it does not matter in which order a database sorts; to be compared in this process only."""
    return sum(hash(tuple(row)) for row in rows)


def _check_source(source: Database, readers: Engine) -> None:
    source.check(create=False)
    found = found_revision(source, readers)
    if not usable(source, found):
        raise StoreRefused(f"store {source}: its schema is older than {REVISION}; mm4 store migrate first")
    if found != REVISION:
        raise StoreRefused(
            f"store {source}: its schema {found} is of a newer mm4; copy with that one, "
            f"this one knows {REVISION} and would leave out what came since"
        )


def _prepare(target: Database) -> None:
    """Have an empty store with the mark, or one that has it already. Raises StoreError for every other."""
    readers = target.engine("scanner")
    try:
        target.check(create=True)
        found = found_revision(target, readers)
        if found == COPYING:
            return
        if found is not None and found.startswith("copying"):
            raise StoreRefused(f"store {target}: another version of mm4 began this copy; give an empty database")
        if bring_up(target, readers)[1] != REVISION:
            raise StoreRefused(f"store {target}: its schema is of a newer mm4; give an empty database")
    finally:
        readers.dispose()
    with target.engine("migrator").begin() as connection:
        for table in _TABLES:
            if connection.execute(select(table.primary_key.columns[0]).limit(1)).first() is not None:
                raise StoreRefused(
                    f"store {target}: has rows in {table.name} and is no copy that this command began; "
                    "give an empty database"
                )
        connection.execute(_MARK, {"revision": COPYING})


@contextmanager
def _writing(target: Database) -> Iterator[Connection]:
    """A connection to the target; of PostgreSQL the only one that copies into it."""
    with target.engine("migrator").connect() as connection:
        if target.path is None:
            with connection.begin():
                alone = connection.execute(select(func.pg_try_advisory_lock(_ADVISORY_LOCK))).scalar_one()
            if not alone:
                raise StoreRefused(f"store {target}: another mm4 store copy writes it just now; let that one end")
        yield connection


def _reading(source: Database, readers: Engine) -> _Read:
    """Reads the source, each time in a transaction of its own."""

    def read(query: Select[Any]) -> Sequence[Row[Any]]:
        with readers.connect() as connection:
            return connection.execute(query).all()

    return _translated(source, read)


def _translated(source: Database, read: _Read) -> _Read:
    def translated(query: Select[Any]) -> Sequence[Row[Any]]:
        try:
            return read(query)
        except Exception as error:
            raise source.failure(error) from error

    return translated


@contextmanager
def _still(source: Database) -> Iterator[Connection]:
    """A connection in whose transaction nobody else can write the source. Raises StoreError where others use it."""
    deadline = time.monotonic() + source.busy_seconds
    # A session without a bound on statements: to count a large table takes PostgreSQL longer than a writer waits.
    with source.engine("writer" if source.path is not None else "migrator").connect() as connection:
        while True:
            try:
                connection.begin()
                break
            except Exception as error:
                if not source.busy(error) or time.monotonic() >= deadline:
                    raise source.failure(error) from error
        try:
            if source.path is None:
                _lock(source, connection, deadline)
        except Exception as error:
            raise source.failure(error) from error
        yield connection


def _lock(source: Database, connection: Connection, deadline: float) -> None:
    """Keep every writer out, and refuse where somebody is connected: it would go on with the old store afterwards."""
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    # What has just hung up may still be there.
    while others := connection.execute(_OTHERS).scalar_one():
        if time.monotonic() >= deadline:
            raise StoreRefused(
                f"store {source}: {others} others are connected; stop mm4 on every host, "
                "pg_stat_activity shows who they are"
            )
        time.sleep(0.05)
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
    connection.execute(_LOCK_ALL)


def _take_over_row_ids(source: Connection, target: Connection) -> None:
    """No row id that the source has given is given again: charging records carry them as sequence numbers."""
    for table in _TABLES:
        (key,) = table.primary_key.columns
        if key.type.python_type is not int:
            continue
        most = source.execute(select(func.coalesce(func.max(key), 0))).scalar_one()
        most = max(most, source.execute(_USED[source.dialect.name], {"name": table.name}).scalar() or 0)
        for statement in _USE[target.dialect.name]:
            target.execute(statement, {"name": table.name, "most": most})


_USED = {
    "sqlite": text("SELECT seq FROM sqlite_sequence WHERE name = :name"),
    "postgresql": text("SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence(:name, 'id') AS regclass))"),
}
_USE = {
    # Of a table without AUTOINCREMENT the row says nothing to SQLite.
    "sqlite": (
        text("DELETE FROM sqlite_sequence WHERE name = :name"),
        text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :most)"),
    ),
    "postgresql": (
        text("SELECT setval(pg_get_serial_sequence(:name, 'id'), greatest(:most, 1), :most > 0)"),
    ),
}

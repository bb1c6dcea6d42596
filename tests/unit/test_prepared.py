"""Statements whose SQL is made once: the same values and errors as SQLAlchemy's own way, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Connection, bindparam, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from mm4.store import Store
from mm4.store.database import Database
from mm4.store.prepared import Prepared, among
from mm4.store.schema import events, limits

KEEP = Prepared(insert(limits))
FIND = Prepared(select(limits).where(limits.c.key == bindparam("a_key"), among(limits.c.used, (1, 2))))
RAISE = Prepared(
    update(limits)
    .where(limits.c.used < 5, limits.c.key == bindparam("a_key"))
    .values(used=limits.c.used + bindparam("more"), until=bindparam("an_at", type_=limits.c.until.type))
)
NOW = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))


@pytest.fixture
def connection(store_url: str) -> Iterator[Connection]:
    Store.open(store_url).close()
    engine = Database.parse(store_url, 1.0, False).engine("writer")
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def test_values_go_in_and_come_out_as_the_columns_say(connection: Connection) -> None:
    assert KEEP.change(connection, {"key": "a", "until": NOW, "used": 1}) == 1
    assert KEEP.change(connection, {"key": "b", "until": NOW, "used": 3}) == 1
    row = FIND.first(connection, {"a_key": "a"})
    assert (row.key, row.until, row.used) == ("a", NOW, 1)
    assert row.until.tzinfo is UTC
    assert FIND.rows(connection, {"a_key": "b"}) == []
    assert RAISE.change(connection, {"a_key": "b", "more": 4, "an_at": NOW}) == 1
    assert RAISE.change(connection, {"a_key": "b", "more": 4, "an_at": NOW}) == 0
    assert connection.execute(select(limits.c.used).where(limits.c.key == "b")).scalar() == 7


def test_it_is_one_transaction_with_what_goes_the_other_way(connection: Connection) -> None:
    KEEP.change(connection, {"key": "a", "until": NOW, "used": 1})
    connection.execute(insert(limits), {"key": "b", "until": NOW, "used": 1})
    connection.rollback()
    assert connection.execute(select(limits)).all() == []


def test_a_value_that_is_missing_is_no_null(connection: Connection) -> None:
    KEEP.change(connection, {"key": "a", "until": NOW, "used": 1})
    with pytest.raises(KeyError):
        KEEP.change(connection, {"key": "b", "used": 1})


def test_a_column_that_nobody_gives_stays_empty(connection: Connection) -> None:
    """As one that a later schema has, while an earlier row is made."""
    note = Prepared(insert(events))
    note.change(connection, {"at": NOW, "what": "seen"})
    assert connection.execute(select(events.c.what, events.c.detail)).all() == [("seen", None)]


def test_errors_are_those_of_sqlalchemy(connection: Connection) -> None:
    KEEP.change(connection, {"key": "a", "until": NOW, "used": 1})
    with pytest.raises(IntegrityError) as caught:
        KEEP.change(connection, {"key": "a", "until": NOW, "used": 1})
    assert not caught.value.connection_invalidated


def test_a_connection_that_broke_is_known_as_broken(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        return  # SQLite has none that could break
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with connection.engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    with pytest.raises(DBAPIError) as caught:
        FIND.rows(connection, {"a_key": "a"})
    assert caught.value.connection_invalidated
    assert connection.invalidated

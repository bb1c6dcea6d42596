"""Sessions with PostgreSQL: bounded, with a server that takes writes, and honest about what nobody knows."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, make_url

from cluster import Cluster, execute
from harness import free_port, wait_for
from mm4.postfix.runtime import EOM_SECONDS
from mm4.protocol.errors import StoreError
from mm4.protocol.limits import Quota
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store
from mm4.store.database import Database
from mm4.store.sessions import BOUNDS, arguments
from proxy import Proxy

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def mail(ids: str | None = None, at: datetime = T0) -> Message:
    token = secrets.token_hex(16)
    ids = ids or token
    one = Transaction(f"t-{ids}", f"m-{ids}", "+447700900101", "+447700900102")
    return Message(token, Direction.IN, "north", "MM4_forward.REQ", "4Q", "mx1", at, (one,), source="north")


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    made = cluster.database()
    yield made
    cluster.drop(made)


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[Proxy]:
    with Proxy(cluster.folder / ".s.PGSQL.5432") as made:
        yield made


def by(hosts: list[str], url: str) -> str:
    """The database of `url`, on these hosts."""
    return "postgresql+psycopg://mm4@/" + url.partition("@/")[2].partition("?")[0] + "?" + "&".join(f"host={h}" for h in hosts)


def test_whatever_is_waited_for_ends_before_the_end_of_a_message_does() -> None:
    busy = 5.0  # Store.open's
    assert BOUNDS["statement_timeout"] < BOUNDS["answer"]
    assert BOUNDS["lock_timeout"] < BOUNDS["statement_timeout"]
    # A session that turns out to be dead, and a new one.
    assert (BOUNDS["answer"] + BOUNDS["connect_timeout"]) * busy < EOM_SECONDS


@pytest.mark.parametrize(
    ("query", "seconds"), [("", 5), ("?host=a:1&host=b:2", 2), ("?host=a,b&port=1,2", 2), ("?host=a&host=b&host=c", 2)]
)
def test_several_hosts_share_the_time_to_connect(query: str, seconds: int) -> None:
    assert arguments(make_url(f"postgresql://mm4@/mm4{query}"), "writer", 5)["connect_timeout"] == seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("writer", {"statement_timeout": "10s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "2500ms"}),
        ("purger", {"statement_timeout": "10s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "2500ms"}),
        ("reader", {"statement_timeout": "10s", "default_transaction_read_only": "on"}),
        ("scanner", {"statement_timeout": "0", "default_transaction_read_only": "on"}),
        ("migrator", {"statement_timeout": "0", "lock_timeout": "5s", "default_transaction_read_only": "off"}),
    ],
)
def test_what_a_session_is_bound_to(url: str, role: str, expected: dict[str, str]) -> None:
    with Database.parse(url, 5, read_only=False).engine(role).connect() as connection:  # type: ignore[arg-type]
        assert {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in expected} == expected


@pytest.mark.slow
def test_a_statement_that_takes_too_long_is_given_up_by_the_server(url: str) -> None:
    with Store.open(url, busy_seconds=0.3) as store:
        assert store._writer is not None
        slow: Future[None] = store._writer.submit(lambda c: c.exec_driver_sql("SELECT pg_sleep(60)") and None)
        with pytest.raises(StoreError, match="a statement took too long and was given up"):
            slow.result(30)
        store.record(mail()).result(30)


@pytest.mark.slow
def test_a_server_that_says_nothing_is_given_up_in_time_by_writes_and_reads(url: str, proxy: Proxy) -> None:
    with Store.open(by([proxy.host], url), busy_seconds=1) as store:
        store.record(mail()).result(30)
        store.owed()
        proxy.hang()
        started = time.monotonic()
        written = store.record(mail())
        with pytest.raises(StoreError, match=r"no connection to PostgreSQL \(no answer within 2\.2 s\)|timeout expired"):
            store.owed()
        with pytest.raises(StoreError, match=r"no connection to PostgreSQL"):
            written.result(30)
        assert time.monotonic() - started < 10
        proxy.restore()
        store.record(mail()).result(30)
        store.owed()


@pytest.fixture
def silent(cluster: Cluster) -> Iterator[Proxy]:
    """A host that takes connections and says nothing."""
    with Proxy(cluster.folder / ".s.PGSQL.5432") as made:
        made.hang()
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("first", ["silent", "refusing"])
def test_of_several_hosts_the_one_that_takes_writes_is_found(
    cluster: Cluster, url: str, proxy: Proxy, silent: Proxy, first: str
) -> None:
    dead = silent.host if first == "silent" else f"127.0.0.1:{free_port()}"
    several = by([dead, proxy.host], url) + "&target_session_attrs=read-write"
    with Store.open(several) as store:
        store.record(mail("one")).result(30)
        assert len(store.trace("t-one")) == 1
    with Store.open(several, migrate=False, read_only=True) as store:
        assert len(store.trace("t-one")) == 1
    # And PostgreSQL's own programs are told of the same hosts, in their own words.
    silent.cut()
    told = Database.parse(several, 5, read_only=False).libpq
    asked = [cluster.programs / "psql", "-At", "-d", told, "-c", "SELECT count(*) FROM transactions"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == "1\n"


@pytest.mark.slow
@pytest.mark.parametrize(("query", "prepared"), [("", True), ("&prepare_threshold=none", False)])
def test_statements_are_prepared_unless_a_pooler_is_in_between(url: str, query: str, prepared: bool) -> None:
    with Store.open(url + query) as store:
        for _ in range(10):
            store.record(mail()).result(30)
            store.owed()
        assert store._writer is not None
        for engine in (store._readers, store._writer._engine):
            with engine.connect() as connection:
                for _ in range(10):
                    connection.exec_driver_sql("SELECT 1")
                found = connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar()
                assert bool(found) == prepared
    assert "prepare" not in Database.parse(url + query, 5, read_only=False).libpq


@pytest.mark.slow
def test_a_session_on_a_server_that_takes_no_writes_any_more_is_left_for_another(url: str) -> None:
    def demote(connection: Connection) -> None:
        connection.exec_driver_sql("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")

    with Store.open(url) as store:
        assert store._writer is not None
        for number in (1, 5):
            store._writer.submit(demote).result(30)
            with Database.parse(url, 10, read_only=False).engine("migrator").connect() as other:
                other.exec_driver_sql("LOCK TABLE messages IN EXCLUSIVE MODE")
                first = store.record(mail())  # the others gather behind it
                time.sleep(0.2)
                futures = [first, *(store.record(mail()) for _ in range(number - 1))]
            for future in futures:
                future.result(30)
        store._writer.submit(demote).result(30)
        execute(url, f"ALTER DATABASE {make_url(url).database} SET default_transaction_read_only = on")
        with pytest.raises(StoreError, match=r"takes no writes \(a standby\?\); name the primary"):
            store.record(mail()).result(30)


@pytest.mark.slow
def test_a_commit_without_an_answer_is_a_failure_and_a_repeat_neither_lost_nor_taken_twice(url: str, proxy: Proxy) -> None:
    kept = "SELECT token FROM messages"
    with Store.open(by([proxy.host], url)) as store, Store.open(url) as other:
        store.ping()
        proxy.lose_commits()
        first = mail("one")
        with pytest.raises(StoreError, match="no connection to PostgreSQL"):
            store.record(first, DAY).result(30)
        assert proxy.lost == 1  # it was not written a second time
        assert [row.token for row in execute(url, kept)] == [first.token]
        proxy.lose_commits(False)
        # Its sender was told to come again. Nobody knows whether it was taken: it is asked to wait, on every host.
        for asked in (store, other):
            assert asked.record(mail("one", T0 + timedelta(seconds=30)), DAY).result(30).pending
        # What stays undecided was not taken.
        again = other.record(mail("one", T0 + timedelta(seconds=61)), DAY).result(30)
        assert (again.pending, again.repeated) == (False, ())
        # A host that can write withdraws what it said no to, and then nobody has to wait.
        second = mail("two")
        proxy.lose_commits()
        with pytest.raises(StoreError):
            store.record(second, DAY).result(30)
        proxy.lose_commits(False)
        store.withdraw(second.token).result(30)
        assert not other.record(mail("two", T0 + timedelta(seconds=1)), DAY).result(30).pending


@pytest.mark.slow
def test_a_commit_that_waits_for_a_standby_that_is_gone_is_a_failure_and_its_repeat_waits() -> None:
    with Cluster() as cluster:
        url = cluster.database()
        with Store.open(url, busy_seconds=0.5) as store, Store.open(url, busy_seconds=0.5) as other:
            store.ping()
            other.ping()
            cluster.run("ALTER SYSTEM SET synchronous_standby_names = 'gone'")
            cluster.run("SELECT pg_reload_conf()")
            for asked, said in ((store, "no answer within"), (other, "held a lock")):
                with pytest.raises(StoreError, match=said):
                    asked.record(mail("one"), DAY).result(30)
            cluster.run("ALTER SYSTEM RESET synchronous_standby_names")
            cluster.run("SELECT pg_reload_conf()")
            # Now it is done after all.
            wait_for(lambda: other.trace("t-one"), "the commit")
            assert other.record(mail("one", T0 + timedelta(seconds=30)), DAY).result(30).pending


@pytest.mark.slow
def test_what_was_undone_for_others_is_done_again(url: str) -> None:
    calls: list[str] = []

    def operation(state: str, failures: int) -> None:
        def failing(connection: Connection) -> int:
            calls.append(state)
            if len(calls) <= failures:
                connection.exec_driver_sql(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{state}'; END $$")
            return len(calls)

        assert store._writer is not None
        calls.clear()
        store._writer.submit(failing).result(30)

    with Store.open(url) as store:
        for state in ("40P01", "40001"):
            operation(state, 3)
            with pytest.raises(StoreError):
                operation(state, 100)
            assert len(calls) == 4
        with pytest.raises(StoreError):
            operation("22012", 100)
        assert len(calls) == 1


@pytest.mark.slow
def test_hosts_that_write_and_count_the_same_in_opposite_order_do_not_wait_for_each_other(cluster: Cluster, url: str) -> None:
    now = datetime.now(UTC)
    names = [f"{kind}-{number}" for kind in ("rate", "flood") for number in range(40)]
    stores = [Store.open(url, busy_seconds=30) for _ in range(2)]
    execute(
        url, "INSERT INTO limits SELECT 'rate-' || n, :past, 1 FROM generate_series(0, 39) n", past=now - timedelta(days=1)
    )
    futures: list[Future[Any]] = []
    for first, second in zip(names * 5, [*reversed(names)] * 5, strict=True):
        for store, name in zip(stores, (first, second), strict=True):
            limits = [Quota(key, "day", 10_000, now + timedelta(hours=1)) for key in (name, "all")]
            answered = store.receive_answer("north", "MM4_forward.RES", f"t-{name}", None, "Ok", None, now, "4R", "mx1")
            futures += [store.take(limits, now), store.record(mail(name), DAY), answered]
    for future in futures:
        future.result(60)
    for store in stores:
        store.close()
    # A session says what it met with when it ends.
    name = make_url(url).database
    assert cluster.run(f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'") == [(0,)]
    counted = execute(url, "SELECT used FROM limits WHERE key = 'all'")
    assert [row.used for row in counted] == [2 * 5 * len(names)]

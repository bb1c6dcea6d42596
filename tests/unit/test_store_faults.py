"""Writing under load and under faults, with real files and real processes: nothing lost, nothing hangs."""

from __future__ import annotations

import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

import mm4
from cluster import Cluster
from mm4.protocol.errors import StoreError
from mm4.protocol.retry import Retry
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.database import Database

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}
T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)

# Records until it is killed or has written `argv[2]` messages; prints each token when its future resolved.
WRITER = """
import secrets, sys, threading
from datetime import UTC, datetime
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store

store = Store.open(sys.argv[1])
lock = threading.Lock()

def run(number):
    for _ in range(number):
        token = secrets.token_hex(16)
        one = Transaction(token, token, "+447700900101", "+447700900102")
        at = datetime.now(UTC)
        store.record(
            Message(token, Direction.IN, "tyntec", "MM4_forward.REQ", "4Q", "mx1", at, (one,))
        ).result()
        with lock:
            print(token, flush=True)

threads = [threading.Thread(target=run, args=(int(sys.argv[2]) // 8,)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
store.close()
"""


def mail(answer: bytes = b"") -> Message:
    token = secrets.token_hex(16)
    one = Transaction(f"t-{token}", f"m-{token}", "+447700900101", "+447700900102")
    due = Answer("a@peer.example", "b@mms.example", "MM4_forward.RES", "Ok", answer)
    return Message(token, Direction.IN, "tyntec", "MM4_forward.REQ", "4Q", "mx1", T0, (one,), due)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url, busy_seconds=0.3) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Store]:
    """A store of SQLite, for what only a file can suffer."""
    with Store.open(f"sqlite:///{tmp_path}/mm4.db", busy_seconds=0.3) as opened:
        yield opened


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process keeps everybody from writing; who reads is let through."""
    if url.startswith("postgresql"):
        with Database.parse(url, 10, read_only=False).engine("migrator").connect() as connection:
            connection.exec_driver_sql("LOCK TABLE messages, events, alembic_version IN EXCLUSIVE MODE")
            yield
        return
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def writing(url: str, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(number)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def commits(store: Store) -> list[None]:
    """Count the writer's commits from now on."""
    assert store._writer is not None
    seen: list[None] = []
    event.listen(store._writer._engine, "commit", lambda connection: seen.append(None))
    return seen


def test_what_gathers_is_committed_together(store: Store, store_url: str) -> None:
    seen = commits(store)
    messages = [mail() for _ in range(100)]
    with locked(store_url):
        futures = [store.record(message) for message in messages]
        assert not any(future.done() for future in futures)
    assert wait(futures, 5).not_done == set()
    assert len(seen) <= 2
    assert {message.token for message in store.owed()} == {message.token for message in messages}


def test_many_threads_record_and_all_is_there(store: Store) -> None:
    tokens: list[str] = []

    def run() -> None:
        for _ in range(25):
            message = mail()
            store.record(message).result(30)
            tokens.append(message.token)

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 500
    assert {message.token for message in store.owed()} == set(tokens)


def test_an_operation_that_fails_fails_alone(store: Store, store_url: str) -> None:
    assert store._writer is not None
    kept = mail()
    store.record(kept).result(30)

    def faulty(connection: Connection) -> None:
        connection.execute(text("DELETE FROM messages"))
        raise KeyError("a fault of ours")

    with locked(store_url):
        good = [store.record(mail()) for _ in range(3)]
        twice = store.record(kept)
        broken: Future[Any] = store._writer.submit(faulty)
        naive = store.accepted(kept.token, T0.replace(tzinfo=None))
        good += [store.record(mail()) for _ in range(3)]
    for future in good:
        future.result(30)
    for failed, match in ((twice, r"UNIQUE|duplicate key"), (broken, "a fault of ours"), (naive, "no time zone")):
        with pytest.raises(StoreError, match=match):
            failed.result(30)
    assert len(store.owed()) == 7
    with pytest.raises(StoreError, match="a fault of ours"):
        store._writer.submit(faulty).result(30)
    assert len(store.owed()) == 7


def test_a_cancelled_write_is_left_out(store: Store, store_url: str) -> None:
    with locked(store_url):
        store.event(None, T0, "first")
        second = store.record(mail())
        assert second.cancel()
        third = store.record(mail())
    third.result(30)
    assert len(store.owed()) == 1


def test_a_locked_store_fails_in_time_and_recovers(store: Store, store_url: str) -> None:
    with locked(store_url):
        started = time.monotonic()
        futures = [store.record(mail()) for _ in range(5)]
        for future in futures:
            with pytest.raises(StoreError, match=r"another process has held (its|a) lock .* shows which"):
                future.result(30)
        with pytest.raises(StoreError, match="lock"):
            store.ping()
        assert time.monotonic() - started < 2.5
        assert store.owed() == []  # reads go on
    store.record(mail()).result(30)
    store.ping()
    assert len(store.owed()) == 1


def test_closing_a_locked_store_does_not_hang(store: Store, store_url: str) -> None:
    with locked(store_url):
        future = store.record(mail())
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < 1.5
    with pytest.raises(StoreError, match="lock"):
        future.result(0)


def test_a_full_store_fails_and_recovers(file: Store) -> None:
    assert file._writer is not None
    small = mail()
    file.record(small).result(30)

    # The limit holds for one connection: it stands in for a full disk until the writer connects anew.
    @event.listens_for(file._writer._engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")

    file._writer._disconnect()  # the writer waits for work: nobody else uses the connection now
    for _ in range(2):
        with pytest.raises(StoreError, match=r"mm4\.db: no room to write; free space"):
            file.record(mail(b"x" * 100_000)).result(30)
    event.remove(file._writer._engine, "connect", limit)
    file._writer._disconnect()
    file.record(mail(b"x" * 100_000)).result(30)
    assert len(file.owed()) == 2


def test_a_group_that_outgrows_the_disk_reports_each_message_truly(file: Store, tmp_path: Path) -> None:
    assert file._writer is not None
    file.ping()

    @event.listens_for(file._writer._engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 40}")

    file._writer._disconnect()
    messages = [mail(b"x" * 60_000) for _ in range(8)]
    with locked(f"sqlite:///{tmp_path}/mm4.db"):
        futures = [file.record(message) for message in messages]
    wait(futures, 5)
    written = {message.token for message, f in zip(messages, futures, strict=True) if not f.exception(0)}
    assert all(isinstance(future.exception(0), StoreError | NoneType) for future in futures)
    assert len(written) < len(messages)
    assert {message.token for message in file.owed()} == written


def test_a_file_taken_away_is_an_error_not_a_new_store(file: Store, tmp_path: Path) -> None:
    assert file._writer is not None
    file._writer._disconnect()
    (tmp_path / "mm4.db").rename(tmp_path / "away.db")
    with pytest.raises(StoreError, match=r"mm4\.db: cannot be opened"):
        file.ping()
    assert not (tmp_path / "mm4.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "mm4.db")
    file.ping()


def test_two_processes_write_at_once(store_url: str) -> None:
    children = [writing(store_url, 160) for _ in range(2)]
    tokens = [token for child in children for token in child.communicate(timeout=30)[0].split()]
    assert [child.returncode for child in children] == [0, 0]
    assert len(tokens) == 320
    with Store.open(store_url, migrate=False) as store:
        assert all(store.message(token) is not None for token in tokens)
        assert store.counts() == {"in/recorded": 320}


def test_what_a_killed_process_reported_is_there(store_url: str) -> None:
    child = writing(store_url, 1_000_000)
    assert child.stdout is not None
    tokens = [child.stdout.readline().strip() for _ in range(150)]
    os.kill(child.pid, signal.SIGKILL)
    tokens += [line.strip() for line in child.stdout.read().splitlines() if len(line.strip()) == 32]
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()
    with Store.open(store_url, busy_seconds=1) as store:
        store.ping()  # the dead process holds no lock
        assert [token for token in tokens if store.message(token) is None] == []


def test_a_store_opened_before_fork_says_so(store: Store) -> None:
    store.ping()
    child = os.fork()
    if child == 0:
        try:
            calls: list[Callable[[], object]] = [
                lambda: store.record(mail()).result(1),
                lambda: store.message("x"),
            ]
            for call in calls:
                try:
                    call()
                    os._exit(1)
                except StoreError as error:
                    if "fork" not in str(error):
                        os._exit(2)
            store.close()
            os._exit(0)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.record(mail()).result(30)
    assert len(store.owed()) == 1


# -- PostgreSQL: a server that stops and starts, and other hosts


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A server that a test may stop."""
    with Cluster() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_while_postgresql_is_down_all_fails_at_once_and_then_goes_on(own_cluster: Cluster, number: int) -> None:
    url = own_cluster.database()
    with Store.open(url) as store, Store.open(url) as idle:
        before = mail()
        store.record(before).result(30)
        idle.ping()
        own_cluster.stop(number)
        started = time.monotonic()
        futures = [store.record(mail()) for _ in range(20)]
        for future in futures:
            with pytest.raises(StoreError, match="no connection to PostgreSQL"):
                future.result(30)
        with pytest.raises(StoreError, match="no connection to PostgreSQL"):
            store.owed()
        assert time.monotonic() - started < 5
        own_cluster.start()
        for each in (store, idle):  # the second has not noticed anything, and its first write counts
            each.record(mail()).result(30)
            assert before in each.owed()
        assert len(store.owed()) == 3


@pytest.mark.slow
def test_what_was_reported_outlives_a_crash_of_postgresql() -> None:
    with Cluster(fsync=True) as cluster:
        url = cluster.database()
        with Store.open(url) as store:
            told: list[str] = []

            def run() -> None:
                while True:
                    message = mail()
                    try:
                        store.record(message).result(30)
                    except StoreError:
                        return
                    told.append(message.token)

            threads = [threading.Thread(target=run) for _ in range(8)]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 60
            while len(told) < 100:
                assert time.monotonic() < end
                time.sleep(0.01)
            cluster.stop(signal.SIGQUIT)
            for thread in threads:
                thread.join(60)
            cluster.start()
            kept = {message.token for message in store.owed()}
            assert set(told) <= kept
            # What was under way may be there too: its commit had no answer.
            assert len(kept) <= len(told) + len(threads)


@pytest.mark.slow
def test_two_hosts_that_take_each_others_locks_both_come_through(cluster: Cluster) -> None:
    url = cluster.database()
    with Store.open(url, busy_seconds=30) as one, Store.open(url, busy_seconds=30) as other:
        messages = [replace(mail(), source="north") for _ in range(100)]
        copies = [replace(m, token=secrets.token_hex(16)) for m in reversed(messages)]
        futures = []
        for first, second in zip(messages, copies, strict=True):
            futures += [one.record(first, timedelta(days=1)), other.record(second, timedelta(days=1))]
        assert sorted(f.result(60).pending for f in futures) == [False] * 100 + [True] * 100
        assert len(one.owed()) == 100


@pytest.mark.slow
def test_a_host_that_dies_in_a_transaction_keeps_its_locks_for_a_moment_only(cluster: Cluster) -> None:
    url = cluster.database()
    with Store.open(url, busy_seconds=5) as store:
        kept = mail()
        store.record(kept).result(30)
        # As mm4 would leave it: a connection of its own kind, with a row locked, that says nothing more.
        dead = Database.parse(url, 0.3, read_only=False).engine("writer").connect()
        dead.exec_driver_sql(f"SELECT token FROM messages WHERE token = '{kept.token}' FOR UPDATE")
        assert store.accepted(kept.token, T0).result(30) is True
        dead.invalidate()
        dead.close()


@pytest.mark.slow
def test_of_two_hosts_with_the_word_of_an_mmsc_one_passes_it_on(cluster: Cluster) -> None:
    url = cluster.database()
    with Store.open(url, busy_seconds=30) as one, Store.open(url, busy_seconds=30) as other:
        for _ in range(20):
            first = replace(mail(), source="north", reply_to="a@peer.example")
            one.record(first).result(30)
            said = [replace(mail(), type="MM4_forward.RES", transactions=(), copy_of=first.token) for _ in range(2)]
            futures = [store.record(res) for store, res in zip((one, other), said, strict=True)]
            assert sorted(future.result(30).pending for future in futures) == [False, True]


@pytest.mark.slow
def test_a_res_at_two_hosts_while_a_third_looks_for_what_is_due_is_one_answer(cluster: Cluster) -> None:
    url = cluster.database()
    stores = [Store.open(url, busy_seconds=30) for _ in range(3)]
    sent = []
    for _ in range(60):
        token = secrets.token_hex(16)
        one = Transaction(
            f"t-{token}", f"m-{token}", "+491511000001", "+447700900102", State.WAITING, ack_requested=True, due_at=T0
        )
        message = Message(token, Direction.OUT, "north", "MM4_forward.REQ", "4Q", "mx1", T0, (one,))
        stores[0].record(message).result(30)
        sent.append(message)
    late = []

    def timer() -> None:
        while found := stores[2].overdue(T0, 7, {"north": Retry(600, 1)}).result(30)[1]:
            late.append(found)

    thread = threading.Thread(target=timer)
    thread.start()
    futures: list[Future[int]] = []
    for index, message in enumerate(sent):
        for store, which in ((stores[0], message), (stores[1], sent[-1 - index])):
            ids = which.transactions[0]
            futures.append(
                store.receive_answer(
                    "north", "MM4_forward.RES", ids.transaction_id, ids.message_id, "Ok", None, T0, "4R", "mx1"
                )
            )
    assert {future.result(60) for future in futures} == {1}
    thread.join(60)
    for message in sent:
        (traced,) = stores[0].trace(message.token)
        whats = [event["what"] for event in traced["events"]]
        assert (traced["state"], traced["status"]) == ("answered", "Ok")
        assert [what for what in whats if "answer" in what][1:] == ["repeated answer"]
    for store in stores:
        store.close()

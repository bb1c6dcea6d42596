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
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

import mm4
from mm4.protocol.errors import StoreError
from mm4.protocol.transaction import Answer, Direction, Message, Transaction
from mm4.store import Store

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


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mm4.db"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(url(tmp_path), busy_seconds=0.3) as opened:
        yield opened


@contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    other = sqlite3.connect(tmp_path / "mm4.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def writing(tmp_path: Path, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url(tmp_path), str(number)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def commits(store: Store) -> list[None]:
    """Count the writer's commits from now on."""
    assert store._writer is not None
    seen: list[None] = []
    event.listen(store._writer._engine, "commit", lambda connection: seen.append(None))
    return seen


def test_what_gathers_is_committed_together(store: Store, tmp_path: Path) -> None:
    seen = commits(store)
    messages = [mail() for _ in range(100)]
    with locked(tmp_path):
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
            store.record(message).result(5)
            tokens.append(message.token)

    threads = [threading.Thread(target=run) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 500
    assert {message.token for message in store.owed()} == set(tokens)


def test_an_operation_that_fails_fails_alone(store: Store, tmp_path: Path) -> None:
    assert store._writer is not None
    kept = mail()
    store.record(kept).result(5)

    def faulty(connection: Connection) -> None:
        connection.execute(text("DELETE FROM messages"))
        raise KeyError("a fault of ours")

    with locked(tmp_path):
        good = [store.record(mail()) for _ in range(3)]
        twice = store.record(kept)
        broken: Future[Any] = store._writer.submit(faulty)
        naive = store.accepted(kept.token, T0.replace(tzinfo=None))
        good += [store.record(mail()) for _ in range(3)]
    for future in good:
        future.result(5)
    for failed, match in ((twice, "UNIQUE"), (broken, "a fault of ours"), (naive, "no time zone")):
        with pytest.raises(StoreError, match=match):
            failed.result(5)
    assert len(store.owed()) == 7
    with pytest.raises(StoreError, match="a fault of ours"):
        store._writer.submit(faulty).result(5)
    assert len(store.owed()) == 7


def test_a_cancelled_write_is_left_out(store: Store, tmp_path: Path) -> None:
    with locked(tmp_path):
        store.event(None, T0, "first")
        second = store.record(mail())
        assert second.cancel()
        third = store.record(mail())
    third.result(5)
    assert len(store.owed()) == 1


def test_a_locked_store_fails_in_time_and_recovers(store: Store, tmp_path: Path) -> None:
    with locked(tmp_path):
        started = time.monotonic()
        futures = [store.record(mail()) for _ in range(5)]
        for future in futures:
            with pytest.raises(StoreError, match=r"mm4\.db: another process has held its lock .* fuser"):
                future.result(5)
        with pytest.raises(StoreError, match="lock"):
            store.ping()
        assert time.monotonic() - started < 1.5
        assert store.owed() == []  # reads go on
    store.record(mail()).result(5)
    store.ping()
    assert len(store.owed()) == 1


def test_closing_a_locked_store_does_not_hang(store: Store, tmp_path: Path) -> None:
    with locked(tmp_path):
        future = store.record(mail())
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < 1.5
    with pytest.raises(StoreError, match="lock"):
        future.result(0)


def test_a_full_store_fails_and_recovers(store: Store) -> None:
    assert store._writer is not None
    small = mail()
    store.record(small).result(5)

    # The limit holds for one connection: it stands in for a full disk until the writer connects anew.
    @event.listens_for(store._writer._engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 3}")

    store._writer._disconnect()  # the writer waits for work: nobody else uses the connection now
    for _ in range(2):
        with pytest.raises(StoreError, match=r"mm4\.db: no room to write; free space"):
            store.record(mail(b"x" * 100_000)).result(5)
    event.remove(store._writer._engine, "connect", limit)
    store._writer._disconnect()
    store.record(mail(b"x" * 100_000)).result(5)
    assert len(store.owed()) == 2


def test_a_group_that_outgrows_the_disk_reports_each_message_truly(store: Store, tmp_path: Path) -> None:
    assert store._writer is not None
    store.ping()

    @event.listens_for(store._writer._engine, "connect")
    def limit(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 40}")

    store._writer._disconnect()
    messages = [mail(b"x" * 60_000) for _ in range(8)]
    with locked(tmp_path):
        futures = [store.record(message) for message in messages]
    wait(futures, 5)
    written = {message.token for message, f in zip(messages, futures, strict=True) if not f.exception(0)}
    assert all(isinstance(future.exception(0), StoreError | NoneType) for future in futures)
    assert len(written) < len(messages)
    assert {message.token for message in store.owed()} == written


def test_a_file_taken_away_is_an_error_not_a_new_store(store: Store, tmp_path: Path) -> None:
    assert store._writer is not None
    store._writer._disconnect()
    (tmp_path / "mm4.db").rename(tmp_path / "away.db")
    with pytest.raises(StoreError, match=r"mm4\.db: cannot be opened"):
        store.ping()
    assert not (tmp_path / "mm4.db").exists()
    (tmp_path / "away.db").rename(tmp_path / "mm4.db")
    store.ping()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    children = [writing(tmp_path, 160) for _ in range(2)]
    tokens = [token for child in children for token in child.communicate(timeout=30)[0].split()]
    assert [child.returncode for child in children] == [0, 0]
    assert len(tokens) == 320
    with Store.open(url(tmp_path), migrate=False) as store:
        assert all(store.message(token) is not None for token in tokens)
        assert store.counts() == {"in/recorded": 320}


def test_what_a_killed_process_reported_is_there(tmp_path: Path) -> None:
    child = writing(tmp_path, 1_000_000)
    assert child.stdout is not None
    tokens = [child.stdout.readline().strip() for _ in range(150)]
    os.kill(child.pid, signal.SIGKILL)
    tokens += [line.strip() for line in child.stdout.read().splitlines() if len(line.strip()) == 32]
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()
    with Store.open(url(tmp_path), busy_seconds=1) as store:
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
    store.record(mail()).result(5)
    assert len(store.owed()) == 1

"""The files of charging records: each record in exactly one, whatever is killed, and whenever a file is fetched."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import mm4
import mm4.postfix.cdr as cdr_module
from mm4.gateway.host import Cdr, Rotate
from mm4.postfix.cdr import CdrWriter
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store
from mm4.store.charges import Charges

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mm4.__file__).parent.parent)}
T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
LATE = T0 + timedelta(days=1)

# Makes records and writes files until it is killed; the numbers of messages that were taken go to stdout.
CHILD = """
import secrets, sys, threading
from datetime import UTC, datetime
from pathlib import Path
from mm4.gateway.host import Cdr, Rotate
from mm4.postfix.cdr import CdrWriter
from mm4.protocol.transaction import Direction, Message, Transaction
from mm4.store import Store

store = Store.open(sys.argv[1], charging=True)
cdr = Cdr(rotate=Rotate(records=5, after="1s"))
writer = CdrWriter(store.charges, cdr, Path(sys.argv[2]), sys.argv[3])

def mail():
    while True:
        token = secrets.token_hex(16)
        at = datetime.now(UTC)
        one = Transaction(token, token, "+491511000001", "+447700900101")
        store.record(Message(token, Direction.OUT, "north", "MM4_forward.REQ", "4Q", "mx1", at, (one,))).result()
        store.accepted(token, at).result()
        with lock:
            print(token, flush=True)

lock = threading.Lock()
for _ in range(2):
    threading.Thread(target=mail, daemon=True).start()
while True:
    writer.write()
"""


class Crash(Exception):
    """The process ends here."""


class Folder:
    """The folder of closed files, and somebody who may fetch them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fetched: list[tuple[str, list[dict[str, Any]]]] = []

    def files(self) -> list[Path]:
        return sorted(p for p in self.path.glob("*") if not p.name.startswith(".")) if self.path.is_dir() else []

    def fetch(self) -> None:
        for file in self.files():
            self.fetched.append((file.name, [json.loads(line) for line in file.read_text().splitlines()]))
            file.unlink()

    def tokens(self) -> Counter[str]:
        self.fetch()
        return Counter(record["token"] for _, records in self.fetched for record in records)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/mm4.db", charging=True) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "cdr")


def charged(store: Store, number: int) -> list[str]:
    tokens = [secrets.token_hex(16) for _ in range(number)]
    for token in tokens:
        one = Transaction(token, token, "+491511000001", "+447700900101")
        store.record(Message(token, Direction.OUT, "north", "MM4_forward.REQ", "4Q", "mx1", T0, (one,))).result(30)
        store.accepted(token, T0).result(30)
    return tokens


def writer(store: Store, folder: Folder | Path, records: int = 3, now: datetime = LATE, **more: Any) -> CdrWriter:
    path = folder.path if isinstance(folder, Folder) else folder
    cdr = Cdr(rotate=Rotate(records=records, after="1h"), **more.pop("cdr", {}))  # type: ignore[arg-type]
    return CdrWriter(store.charges, cdr, path, more.pop("host", "mx1"), lambda: now, **more)


def test_files_are_full_or_old(store: Store, folder: Folder) -> None:
    tokens = charged(store, 7)
    assert writer(store, folder, now=T0 + timedelta(minutes=59)).write() == 2
    assert [len(file.read_text().splitlines()) for file in folder.files()] == [3, 3]
    assert store.charges.waiting() == (1, T0)
    assert writer(store, folder, now=T0 + timedelta(minutes=60)).write() == 1
    names = [f"mm4-mx1-20261122T{t}00Z-{a:012}-{b:012}.jsonl" for t, a, b in (("1059", 1, 3), ("1059", 4, 6), ("1100", 7, 7))]
    assert [file.name for file in folder.files()] == names
    assert not any(file.stat().st_mode & 0o007 for file in folder.files())
    assert writer(store, folder).write() == 0
    assert store.charges.waiting() == (0, None)
    assert folder.tokens() == Counter(tokens)
    assert [r["sequence_number"] for _, records in folder.fetched for r in records] == list(range(1, 8))


def test_records_of_a_clock_that_was_ahead_do_not_wait_for_it(store: Store, folder: Folder) -> None:
    charged(store, 1)
    assert writer(store, folder, now=T0 - timedelta(minutes=59)).write() == 0
    assert writer(store, folder, now=T0 - timedelta(days=1)).write() == 1


def test_a_csv_file_has_a_head_line(store: Store, folder: Folder) -> None:
    tokens = charged(store, 2)
    writer(store, folder, cdr={"format": "csv"}).write()
    (file,) = folder.files()
    assert file.suffix == ".csv"
    with file.open(newline="") as opened:
        assert [row["token"] for row in csv.DictReader(opened)] == tokens


# -- killed at each step

STEPS = [(os, "open"), (os, "fsync"), (Path, "rename"), (Charges, "claim"), (Charges, "written"), (Charges, "closed")]


class Steps:
    """Counts what a writer does, and ends it before or after one of the steps."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int, after: bool, between: Callable[[], None]) -> None:
        self.number, self.last, self.after, self.between = 0, last, after, between
        for owner, name in STEPS:
            target = cdr_module.os if owner is os else owner
            patch.setattr(target, name, self._step(getattr(owner, name)))

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            self.number += 1
            here = self.number == self.last
            if here and not self.after:
                raise Crash
            result = real(*arguments, **named)
            if isinstance(result, Future):
                result.result(30)
            self.between()
            if here:
                raise Crash
            return result

        return step


def run_to(store: Store, folder: Folder, last: int, after: bool, fetching: bool) -> bool:
    """Whether the writer came to its end before the step at which it is killed."""
    with pytest.MonkeyPatch.context() as patch:
        between = (lambda: fetch_quietly(folder)) if fetching else (lambda: None)
        Steps(patch, last, after, between)
        try:
            writer(store, folder).write()
        except Crash:
            return False
    return True


def fetch_quietly(folder: Folder) -> None:
    # The steps of the one who fetches are none of the writer's: read and unlink are not counted.
    for file in folder.files():
        with open(file) as opened:
            folder.fetched.append((file.name, [json.loads(line) for line in opened]))
        file.unlink()


@pytest.mark.parametrize("fetching", [False, True], ids=["left", "fetched at once"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_step_each_record_is_in_one_file(
    store: Store, folder: Folder, after: bool, fetching: bool
) -> None:
    everything: list[str] = []
    for last in range(1, 200):
        everything += charged(store, 4)
        complete = run_to(store, folder, last, after, fetching)
        if complete:
            break
        # The next start finishes it, even when that is killed too, at an earlier step.
        run_to(store, folder, max(1, last // 2), after, fetching)
        writer(store, folder).write()
        assert folder.tokens() == Counter(everything), f"killed at step {last}"
        assert store.charges.unclosed() == []
    assert complete
    assert last > 15
    names = [name for name, _ in folder.fetched]
    assert len(names) == len(set(names))
    assert list(folder.path.glob(".*.part")) == []


def test_a_file_that_was_written_in_a_folder_that_is_gone_is_written_again(store: Store, folder: Folder) -> None:
    tokens = charged(store, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            writer(store, folder).write()
    # The disk is not mounted: an empty folder in its place.
    folder.path.rename(folder.path.with_name("elsewhere"))
    folder.path.mkdir()
    writer(store, folder).write()
    assert folder.tokens() == Counter(tokens)


def test_what_was_begun_in_another_folder_is_finished_there(store: Store, folder: Folder, tmp_path: Path) -> None:
    tokens = charged(store, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            writer(store, folder).write()
    other = Folder(tmp_path / "other")
    assert writer(store, other).write() == 2
    assert folder.tokens() + other.tokens() == Counter(tokens)
    assert len(folder.fetched) == len(other.fetched) == 1


def test_each_host_finishes_its_own(store: Store, folder: Folder, tmp_path: Path) -> None:
    tokens = charged(store, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            writer(store, folder).write()
    other = Folder(tmp_path / "other")
    assert writer(store, other, host="mx2").write() == 0
    assert other.tokens() == Counter()
    writer(store, folder).write()
    assert folder.tokens() == Counter(tokens)


def test_several_writers_in_one_folder_share_the_work(store: Store, folder: Folder, tmp_path: Path) -> None:
    tokens = charged(store, 60)
    with Store.open(f"sqlite:///{tmp_path}/mm4.db", charging=True) as other:
        stores = (store, other, store, other)
        threads = [threading.Thread(target=writer(s, folder).write) for s in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    writer(store, folder).write()  # one that found the folder taken had nothing to do
    assert folder.tokens() == Counter(tokens)
    names = [name for name, _ in folder.fetched]
    assert len(names) == len(set(names)) == 20


def test_two_hosts_that_claim_at_once_never_get_one_record(store: Store, tmp_path: Path) -> None:
    folders = {host: Folder(tmp_path / host) for host in ("mx1", "mx2")}
    tokens = charged(store, 20)
    done = threading.Event()
    faults: list[BaseException] = []

    def work(host: str, opened: Store) -> None:
        try:
            while not done.is_set():
                writer(opened, folders[host], host=host).write()
        except BaseException as fault:
            faults.append(fault)

    with Store.open(f"sqlite:///{tmp_path}/mm4.db", charging=True) as other:
        stores = {"mx1": store, "mx2": other}
        threads = [threading.Thread(target=work, args=item) for item in stores.items()]
        for thread in threads:
            thread.start()
        tokens += charged(store, 60)
        poll(lambda: store.charges.waiting()[0] == 0)
        done.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    assert folders["mx1"].tokens() + folders["mx2"].tokens() == Counter(tokens)
    assert store.charges.unclosed() == []


def killed(tmp_path: Path, folder: Folder, lines: int, pause: float, host: str) -> list[str]:
    """What a process that was killed had taken."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"sqlite:///{tmp_path}/mm4.db", str(folder.path), host],
        env=ENVIRONMENT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    tokens = [child.stdout.readline().strip() for _ in range(lines)]
    time.sleep(pause)
    os.kill(child.pid, signal.SIGKILL)
    tokens += [line.strip() for line in child.stdout.read().splitlines() if len(line.strip()) == 32]
    assert child.wait(60) == -signal.SIGKILL
    child.stdout.close()
    return tokens


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again_loses_and_repeats_nothing(
    store: Store, folder: Folder, tmp_path: Path
) -> None:
    taken: list[str] = []
    chance = random.Random()
    for number in range(6):
        taken += killed(tmp_path, folder, 10, chance.random() / 5, "mx1")
        if number % 2:
            folder.fetch()
    writer(store, folder, now=datetime.now(UTC) + timedelta(days=1)).write()
    there = folder.tokens()
    assert set(there.values()) == {1}
    # A message that was taken while its process died may not have been reported.
    assert set(taken) <= set(there)
    assert set(there) == {record.token for record in store.charges.search()}


# -- a disk that is full or away


class Counts:
    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.records = 0

    def cdr_file(self, result: str, records: int) -> None:
        self.files[result] += 1
        self.records += records


def test_a_full_disk_is_counted_and_tried_again_and_mail_goes_on(
    store: Store, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(cdr_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(cdr_module, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(cdr_module.os, "fsync", fsync)
    counts = Counts()
    tokens = charged(store, 3)
    running = writer(store, folder, counters=counts)
    running.start()
    try:
        poll(lambda: counts.files["failed"] > 1)
        tokens += charged(store, 1)
        assert folder.files() == []
        full.clear()
        poll(lambda: counts.files["closed"] == 2)
    finally:
        running.stop()
    assert counts.records == 4
    assert folder.tokens() == Counter(tokens)


def test_a_folder_whose_parent_is_missing_is_not_made(store: Store, tmp_path: Path) -> None:
    tokens = charged(store, 3)
    away = Folder(tmp_path / "disk" / "cdr")
    with pytest.raises(FileNotFoundError, match="disk"):
        writer(store, away).write()
    away.path.parent.mkdir()
    writer(store, away).write()
    assert away.tokens() == Counter(tokens)


def poll(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end
        time.sleep(0.01)

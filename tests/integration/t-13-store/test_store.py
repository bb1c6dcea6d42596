"""A store that cannot be written: peers are put off, what was accepted is acknowledged, nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Link, Mta, forward_req, new_ids, wait_for

pytestmark = [
    pytest.mark.postfix,
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
        reason="needs a mount namespace of its own, for a small file system that can be filled",
    ),
]

HERE = Path(__file__).parent

RECOVERY = 10.0
"""Seconds within which every ack is out once the cause is gone."""

DEADLINE = 20.0
"""Longest time from the end of a message to its verdict (runtime.EOM_SECONDS), and what a busy machine adds."""
SLACK = 8.0


class Disk(Link):
    """A gateway whose store lies on a tmpfs of its own, which a test can fill, lock and stop."""

    def __init__(self) -> None:
        super().__init__((HERE / "mm4.yaml").read_text(), hops=("mmsc", "north"))
        gateway = self.gateway
        self.folder = gateway.folder / "disk"
        self.folder.mkdir()
        self.flag = gateway.folder / "slow"
        gateway.yaml.write_text(gateway.yaml.read_text().replace("@disk@", str(self.folder)))
        library = gateway.folder / "slow_disk.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(HERE / "slow_disk.c")], check=True)
        gateway.env = {"LD_PRELOAD": str(library), "SLOW_DISK": str(self.flag)}
        mount = 'mount -t tmpfs -o size=8m,mode=755 tmpfs "$0" && exec "$@"'
        gateway.wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(self.folder))

    @property
    def inside(self) -> Path:
        """The folder of the store, as the gateway sees it."""
        return Path(f"/proc/{self.gateway.facts['pid']}/root{self.folder}")

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.inside / "filler").open("wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the space back."""
        (self.inside / "filler").unlink()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Another process has the store's lock; in the gateway's namespace, as SQLite resolves /proc/N/root."""
        hold = (
            "import sqlite3, sys; store = sqlite3.connect(sys.argv[1]); store.execute('BEGIN EXCLUSIVE'); "
            "print('locked', flush=True); sys.stdin.read()"
        )
        command = ["nsenter", "--mount", "--target", str(self.gateway.facts["pid"]), sys.executable, "-c", hold]
        with subprocess.Popen(
            [*command, str(self.folder / "mm4.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            try:
                assert other.stdout.readline() == "locked\n"
                yield
            finally:
                other.stdin.close()

    def refusals(self, since: int) -> list[str]:
        """The log lines of messages that were put off, from this place of the log on."""
        return [line for line in self.gateway.log()[since:].splitlines() if "verdict=tempfail" in line]


@pytest.fixture(scope="module")
def link() -> Iterator[Disk]:
    with Disk() as made:
        yield made


def _messages(count: int) -> dict[str, bytes]:
    pairs = [new_ids() for _ in range(count)]
    return {ids[0]: forward_req(ids=ids) for ids in pairs}


def _accepted_but_not_answered(link: Disk) -> tuple[int, dict[str, bytes]]:
    """A responder that stands still, and messages that wait for it."""
    messages = _messages(4)
    (responder,) = link.gateway.children("answerer")
    os.kill(responder, signal.SIGSTOP)
    with Mta(link.gateway.smtp, messages, gap=0) as mta:
        mta.wait()
    return responder, messages


def _each_once(link: Disk, messages: dict[str, bytes], since: float) -> None:
    """Every message delivered and acknowledged, once, the last ack within RECOVERY of `since`."""
    wait_for(lambda: messages.keys() <= link.north.by_transaction().keys(), f"{len(messages)} acks", RECOVERY * 3)
    last = max(link.north.by_transaction()[name][0].at for name in messages) - since
    assert last < RECOVERY, f"the last ack came {last:.1f} s after recovery"
    link.gateway.quiet()
    answers, delivered = link.north.by_transaction(), link.mmsc.by_transaction()
    assert {len(answers[name]) for name in messages} == {1}
    assert {len(delivered.get(name, ())) for name in messages} == {1}
    assert {answer.header("X-Mms-Request-Status-Code") for name in messages for answer in answers[name]} == {"Ok"}


def _put_off(link: Disk, mta: Mta, since: int, reason: str) -> None:
    """Every refusal is a 451 at the end of the message, and each has its one line with the queue id and the reason."""
    assert {(failure.step, failure.code) for failure in mta.failures} == {("end", 451)}
    refusals = link.refusals(since)
    assert len(refusals) == len(mta.failures)
    # What the store kept too late may be seen by another process before it is withdrawn.
    said = rf"queue_id=\w{{10,}} .*reason=.*({reason}|the same message is undecided)"
    assert all(re.search(said, line) for line in refusals), refusals
    assert any(reason in line for line in refusals)


def test_a_store_that_somebody_locks_puts_peers_off_and_loses_no_ack(link: Disk) -> None:
    responder, before = _accepted_but_not_answered(link)
    messages = _messages(4)
    mark = len(link.gateway.log())
    with contextlib.ExitStack() as lock:
        lock.enter_context(link.locked())
        os.kill(responder, signal.SIGCONT)
        begun = time.monotonic()
        with Mta(link.gateway.smtp, messages, gap=0) as mta:
            wait_for(lambda: len({failure.name for failure in mta.failures}) == 4, "refusals of all four")
            assert time.monotonic() - begun < DEADLINE + SLACK
            assert mta.accepted == {}
            lock.close()
            unlocked = time.monotonic()
            mta.wait()
    _put_off(link, mta, mark, "another process has held its lock")
    _each_once(link, before | messages, max(unlocked, *mta.accepted.values()))


def test_a_full_disk_puts_peers_off_and_loses_nothing(link: Disk) -> None:
    responder, before = _accepted_but_not_answered(link)
    messages = _messages(4)
    mark = len(link.gateway.log())
    link.fill()
    os.kill(responder, signal.SIGCONT)
    with Mta(link.gateway.smtp, messages, gap=0) as mta:
        wait_for(lambda: len({failure.name for failure in mta.failures}) == 4, "refusals of all four")
        assert mta.accepted == {}
        link.free()
        freed = time.monotonic()
        mta.wait()
    _put_off(link, mta, mark, "no room to write")
    _each_once(link, before | messages, max(freed, *mta.accepted.values()))


def test_a_disk_that_does_not_answer_puts_peers_off_before_their_patience_ends(link: Disk) -> None:
    messages = _messages(4)
    mark = len(link.gateway.log())
    link.flag.touch()
    begun = time.monotonic()
    with Mta(link.gateway.smtp, messages, gap=0) as mta:
        wait_for(lambda: len({failure.name for failure in mta.failures}) == 4, "refusals of all four")
        # Twice: libmilter counts a thread as idle until it wakes, and may give it two messages (docs/knownissues.md).
        assert time.monotonic() - begun < 2 * DEADLINE + SLACK
        assert mta.accepted == {}
        link.flag.unlink()
        moved = time.monotonic()
        mta.wait()
    _put_off(link, mta, mark, "did not commit within 20 s")
    _each_once(link, messages, max(moved, *mta.accepted.values()))

"""Whatever keeps an ack from going out, it waits in Postfix's queue and goes out soon after the cause is gone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from harness import Link, Mta, forward_req, headers_of, new_ids, wait_for

pytestmark = [
    pytest.mark.postfix,
    pytest.mark.skipif(
        subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
        reason="needs a mount namespace of its own, to put a sendmail that fails in the place of the real one",
    ),
]

CONFIG = (Path(__file__).parent / "mm4.yaml").read_text()

RECOVERY = 10.0
"""Seconds within which every ack is out once the cause is gone."""


class Sendmail:
    """In the place of /usr/sbin/sendmail, in the gateway's own mount namespace: works, hangs, or ends with 75."""

    def __init__(self, folder: Path) -> None:
        self._mode = folder / "sendmail.mode"
        real, script = folder / "sendmail.real", folder / "sendmail.fake"
        shutil.copy("/usr/sbin/sendmail", real)
        self.works()
        script.write_text(
            "#!/bin/sh\n"
            f"while [ $(cat {self._mode}) = hangs ]; do sleep 0.1; done\n"
            f"[ $(cat {self._mode}) = works ] || {{ echo 'fatal: it is as the test wants it' >&2; exit 75; }}\n"
            f'exec {real} "$@"\n'
        )
        script.chmod(0o755)
        mount = 'mount --bind "$0" /usr/sbin/sendmail && exec "$@"'
        self.wrapper = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(script))

    def works(self) -> None:
        """From now on, and for those that hang."""
        self._mode.write_text("works")

    def hangs(self) -> None:
        """Whoever is started now waits."""
        self._mode.write_text("hangs")

    def fails(self) -> None:
        """EX_TEMPFAIL."""
        self._mode.write_text("fails")


class Neighbours(Link):
    """A gateway whose sendmail does as a test wants it to."""

    def __init__(self) -> None:
        super().__init__(CONFIG, hops=("mmsc", "north"))
        self.sendmail = Sendmail(self.gateway.folder)
        self.gateway.wrapper = self.sendmail.wrapper


@pytest.fixture(scope="module")
def link() -> Iterator[Neighbours]:
    with Neighbours() as made:
        yield made


@pytest.fixture(autouse=True)
def sendmail_works_again(link: Neighbours) -> Iterator[None]:
    """A test that fails leaves the others a sendmail that works."""
    yield
    link.sendmail.works()


def _messages(count: int) -> dict[str, bytes]:
    pairs = [new_ids() for _ in range(count)]
    return {ids[0]: forward_req(ids=ids) for ids in pairs}


def _sent(link: Link, messages: dict[str, bytes]) -> None:
    """Everything accepted at once and with the MMSC, which no trouble with acks may hold up."""
    with Mta(link.gateway.smtp, messages, gap=0) as mta:
        mta.wait()
    assert mta.failures == []
    wait_for(lambda: messages.keys() <= link.mmsc.by_transaction().keys(), "all messages at the MMSC")


def _waiting(link: Link) -> list[dict[str, Any]]:
    """Recipients that wait for the responder, as `postqueue -j` shows them."""
    recipients = [recipient for mail in link.gateway.queue() for recipient in mail["recipients"]]
    return [r for r in recipients if r["address"].endswith("@responder.mm4.invalid")]


def _wait_waiting(link: Link, count: int) -> None:
    """Wait until so many recipients wait; one that moves between queues may be in neither, or be seen in both."""
    wait_for(lambda: len({r["address"] for r in _waiting(link)}) == count, f"{count} recipients that wait")


def _all_out(link: Link, messages: dict[str, bytes], since: float) -> None:
    """Wait until every message has an ack; fails unless all came within RECOVERY of `since`."""
    wait_for(lambda: messages.keys() <= link.north.by_transaction().keys(), f"{len(messages)} acks", RECOVERY * 3)
    answers = link.north.by_transaction()
    last = max(answers[name][0].at for name in messages) - since
    assert last < RECOVERY, f"the last ack came {last:.1f} s after recovery"


def _counts(link: Link, messages: dict[str, bytes]) -> set[int]:
    """How many acks each message has got, once nothing is under way any more."""
    link.gateway.quiet()
    answers = link.north.by_transaction()
    return {len(answers.get(name, ())) for name in messages}


def _end_kept_sessions(link: Link) -> None:
    """End the sendmail processes that the responder keeps for the next ack: it has to start new ones."""
    (responder,) = link.gateway.children("answerer")
    for kept in link.gateway.below(responder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(kept, signal.SIGKILL)


def _same_content(link: Link, messages: dict[str, bytes]) -> None:
    """Whatever of an ack comes twice is the same to the byte, below what Postfix writes on top."""
    answers = link.north.by_transaction()
    for name in messages:
        texts = {b"\n".join(v for n, v in headers_of(a.content) if n != "Received") for a in answers[name]}
        assert len(texts) == 1


def _new_responder(link: Link, old: int) -> float:
    """Wait for the next responder after the old one was killed; the moment from which it serves."""

    def look() -> bool:
        serving = [pid for pid in link.gateway.children("answerer") if pid != old]
        return any(f"child=responder pid={pid} ready=yes" in link.gateway.log() for pid in serving)

    wait_for(look, "a new responder")
    return time.monotonic()


def test_acks_wait_while_sendmail_hangs_and_go_out_when_it_goes_on(link: Neighbours) -> None:
    messages = _messages(12)
    link.sendmail.hangs()
    _sent(link, messages)
    (responder,) = link.gateway.children("answerer")
    wait_for(lambda: len(link.gateway.below(responder)) >= 4, "sendmail processes that hang")
    _wait_waiting(link, 12)
    assert link.north.mails == []
    link.sendmail.works()
    _all_out(link, messages, time.monotonic())
    assert _counts(link, messages) == {1}


def test_acks_wait_while_sendmail_fails_and_go_out_when_it_works_again(link: Neighbours) -> None:
    messages = _messages(12)
    link.sendmail.fails()
    _end_kept_sessions(link)
    _sent(link, messages)
    # The responder itself tries for 20 s, then it is Postfix's queue that keeps them.
    deferred = wait_for(lambda: [r for r in _waiting(link) if "delay_reason" in r], "a deferred ack in the queue")
    assert "451 4.3.0 Try again later" in deferred[0]["delay_reason"]
    _wait_waiting(link, 12)
    assert "it is as the test wants it" in link.gateway.wait_log("sendmail ended with status 75")
    assert not messages.keys() & link.north.by_transaction().keys()
    link.sendmail.works()
    _all_out(link, messages, time.monotonic())
    assert _counts(link, messages) == {1}


def test_a_responder_that_stood_still_goes_on_where_it_was(link: Neighbours) -> None:
    messages = _messages(4)
    (responder,) = link.gateway.children("answerer")
    os.kill(responder, signal.SIGSTOP)
    try:
        _sent(link, messages)
        # Postfix waits 10 s for the greeting; then nothing of its own accord brings them back for five minutes.
        wait_for(lambda: all("delay_reason" in r for r in _waiting(link)), "deferred recipients")
        _wait_waiting(link, 4)
        assert not messages.keys() & link.north.by_transaction().keys()
    finally:
        os.kill(responder, signal.SIGCONT)
    _all_out(link, messages, time.monotonic())
    assert _counts(link, messages) == {1}


def test_acks_go_on_after_a_kill_9_under_traffic(link: Neighbours) -> None:
    messages = _messages(50)
    recovered = 0.0
    with Mta(link.gateway.smtp, messages) as mta:
        for moment in (10, 30):
            mta.wait(moment)
            (responder,) = link.gateway.children("answerer")
            os.kill(responder, signal.SIGKILL)
            recovered = _new_responder(link, responder)
        mta.wait()
    assert mta.failures == [], "the peer notices nothing of it"
    _all_out(link, messages, max(recovered, *mta.accepted.values()))
    assert 0 not in _counts(link, messages)
    _same_content(link, messages)


def test_an_ack_that_was_submitted_but_not_noted_comes_again_the_same_after_a_kill_9(link: Neighbours) -> None:
    messages = _messages(1)
    (responder,) = link.gateway.children("answerer")
    os.kill(responder, signal.SIGSTOP)
    _sent(link, messages)
    with closing(sqlite3.connect(link.gateway.folder / "sandbox" / "mm4.db")) as store:
        store.execute("BEGIN EXCLUSIVE")
        os.kill(responder, signal.SIGCONT)
        wait_for(lambda: messages.keys() <= link.north.by_transaction().keys(), "the first ack")
        os.kill(responder, signal.SIGKILL)
    recovered = _new_responder(link, responder)
    wait_for(lambda: _counts(link, messages) == {2}, "the second ack")
    assert time.monotonic() - recovered < RECOVERY
    _same_content(link, messages)


def test_an_ack_under_way_at_an_orderly_stop_is_not_sent_again(link: Neighbours) -> None:
    messages = _messages(4)
    (responder,) = link.gateway.children("answerer")
    link.sendmail.hangs()
    _end_kept_sessions(link)
    _sent(link, messages)
    wait_for(lambda: len(link.gateway.below(responder)) >= 8, "a sendmail that hangs for each of them")
    mark = len(link.gateway.log())
    stop = threading.Thread(target=link.gateway.stop)
    stop.start()
    # Postfix is gone without having heard what became of its deliveries; then they succeed.
    wait_for(lambda: not link.gateway.processes("lmtp"), "the end of Postfix")
    link.sendmail.works()
    stop.join()
    link.gateway.start()
    restarted = time.monotonic()
    _all_out(link, messages, restarted)
    assert _counts(link, messages) == {1}
    # Postfix did bring all four again.
    assert link.gateway.log()[mark:].count('why="already answered"') == 4


@pytest.mark.parametrize("what", ["traffic", "queued"])
def test_after_an_orderly_stop_every_ack_comes_once(link: Neighbours, what: str) -> None:
    messages = _messages(30)
    if what == "queued":
        link.sendmail.fails()
        _end_kept_sessions(link)
    with Mta(link.gateway.smtp, messages) as mta:
        mta.wait(20)
        assert link.gateway.stop() == 0
        link.sendmail.works()
        link.gateway.start()
        restarted = time.monotonic()
        mta.wait()
    _all_out(link, messages, max(restarted, *mta.accepted.values()))
    link.gateway.quiet()
    answers = link.north.by_transaction()
    for name in messages:
        # Postfix may have kept a message whose 250 the stop cut off; then there are two, and each has its ack.
        unsure = sum(f.name == name and f.step == "end" for f in mta.failures)
        # What was submitted counts: the stop also cuts Postfix's own client short, and what that has sent but not noted
        # it sends again.
        submitted = {mail.submission for mail in answers[name]}
        log = [line for line in link.gateway.log().splitlines() if name in line or any(one in line for one in submitted)]
        assert 1 <= len(submitted) <= 1 + unsure, "\n".join(log)

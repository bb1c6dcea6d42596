"""What time does on real Postfix: overdue, sent again with the same ids, failed; through kills, restarts, full spools."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, SECONDS, Link, Mail, forward_req, headers_of, mm4, new_ids, wait_for
from mm4.cli.trace import trace

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
HOPS = ("mmsc", "once", "north", "hasty", "patient")
OURS = "+491511000001"
NUMBER = {"once": "+447700900101", "north": "+33600000001", "hasty": "+34600000001", "patient": "+485000000001"}
SOURCE = {"once": "127.0.0.21", "north": "127.0.0.22", "hasty": "127.0.0.23", "patient": "127.0.0.24"}


class Late(Link):
    """A gateway whose peers take their time."""

    def __init__(self, quota: str = "1GB") -> None:
        super().__init__(YAML, HOPS, quota=quota)

    def ask(self, peer: str, *more: str, expiry: str | None = None) -> str:
        """A REQ of our MMSC to a number of the peer, and to more of them; gives its transaction id."""
        ids = new_ids("mms.gw.example")
        numbers = [NUMBER[peer], *more]
        message = forward_req(sender=OURS, to=NUMBER[peer], ids=ids, system="mmsc@mms.gw.example")
        if expiry:
            message = re.sub(rb"(?m)^(X-Mms-Expiry: )[^\r]*", rb"\g<1>" + expiry.encode(), message)
        told = self.gateway.send(
            message, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example",
            rcpt=tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers),
        )  # fmt: skip
        assert told.code == 250, told
        return ids[0]

    def answer(self, peer: str, request: Mail, status: str = "Ok") -> None:
        """The peer's RES."""
        lines = {
            "X-Mms-3GPP-MMS-Version": "5.5.0",
            "X-Mms-Message-Type": "MM4_forward.RES",
            "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"),
            "X-Mms-Message-ID": request.header("X-Mms-Message-ID"),
            "X-Mms-Request-Status-Code": status,
            "Content-Type": "text/plain",
        }
        domain = f"mms.{peer}.example"
        told = self.gateway.send(
            "".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n", source=SOURCE[peer],
            mail_from=f"system@{domain}", rcpt=("system-user@mms.gw.example",),
        )  # fmt: skip
        assert told.code == 250, told

    def states(self, identifier: str) -> dict[str, str]:
        """State by recipient."""
        return {t["recipient"]: t["state"] for t in self.traced(identifier) if t["type"] == "MM4_forward.REQ"}

    def traced(self, identifier: str) -> list[dict[str, Any]]:
        from click.testing import CliRunner

        done = CliRunner().invoke(trace, ["--config", self.gateway.config, "--json", identifier])
        return list(json.loads(done.stdout)["transactions"])

    def whats(self, identifier: str) -> list[str]:
        """What happened to the first recipient, in order."""
        return [event["what"] for event in self.traced(identifier)[0]["events"]]

    def reaches(self, identifier: str, state: str) -> None:
        # A token that was put off on a busy machine comes back with a run of the queue, after a minute.
        wait_for(lambda: set(self.states(identifier).values()) == {state}, f"{identifier} is {state}", 3 * SECONDS)

    @property
    def spool(self) -> Path:
        return Path(self.gateway.facts["maildir"]).parent / "spool"

    def copies(self) -> list[str]:
        return sorted(path.name for path in self.spool.iterdir())

    def empty(self) -> None:
        """Wait until no copy is kept: nobody waits for a RES any more."""
        wait_for(lambda: self.copies() == [], "an empty spool")

    def kill_responder(self) -> None:
        (pid,) = self.gateway.children("answerer")
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in self.gateway.children("answerer") and self.gateway.children("answerer"), "a new responder")


@pytest.fixture(scope="module")
def link() -> Iterator[Late]:
    with Late() as made:
        yield made


def without_own_received(mail: Mail) -> bytes:
    """What the peer got, but for the line that our Postfix puts on top."""
    name, _ = headers_of(mail.content)[0]
    assert name == "Received"
    return re.sub(rb"\AReceived:(?:[^\r\n]|\r?\n[ \t])*\r?\n", b"", mail.content, count=1)


def test_without_retries_what_is_not_answered_is_overdue_and_a_late_answer_counts(link: Late) -> None:
    asked = link.ask("once")
    link.reaches(asked, "overdue")
    assert link.gateway.wait_log(f"mm4/timers.* warning: .*peer=once .*transaction_id={asked} .*state=overdue")
    (mail,) = link.once.carrying(asked)
    link.answer("once", mail)
    link.reaches(asked, "answered")
    assert link.whats(asked)[-2:] == ["overdue", "late answer"]


def test_a_message_is_sent_again_with_the_same_bytes_until_its_answer_comes(link: Late) -> None:
    asked = link.ask("north")
    first, second = link.north.wait_for(asked, 2)
    assert without_own_received(second) == without_own_received(first)
    assert (second.mail_from, second.rcpt) == (first.mail_from, first.rcpt)
    assert len(second.all("Received")) == len(first.all("Received"))
    link.answer("north", second)
    link.reaches(asked, "answered")
    link.empty()
    assert [what for what in link.whats(asked) if what in ("overdue", "sent again", "answer received")] == [
        "overdue", "sent again", "answer received",
    ]  # fmt: skip
    link.gateway.quiet()
    assert len(link.north.carrying(asked)) == 2


def test_after_the_last_attempt_it_is_failed(link: Late) -> None:
    asked = link.ask("hasty")
    link.reaches(asked, "failed")
    assert len(link.hasty.carrying(asked)) == 3
    assert link.whats(asked).count("sent again") == 2
    assert link.gateway.wait_log(f"transaction_id={asked} .*state=failed")
    link.empty()


def test_an_error_that_may_pass_is_sent_again_and_a_permanent_one_is_not(link: Late) -> None:
    passing, lasting = link.ask("north"), link.ask("north")
    link.answer("north", link.north.wait_for(passing)[0], "Error-network-problem")
    link.answer("north", link.north.wait_for(lasting)[0], "Error-service-denied")
    _, again = link.north.wait_for(passing, 2)
    link.answer("north", again)
    link.reaches(passing, "answered")
    assert link.traced(passing)[0]["status"] == "Ok"
    link.empty()
    assert len(link.north.carrying(lasting)) == 1
    assert link.traced(lasting)[0]["status"] == "Error-service-denied"


def test_only_who_has_not_answered_gets_it_again(link: Late) -> None:
    other = "+33600000002"
    asked = link.ask("north", other)
    first = link.north.wait_for(asked)
    assert sorted(a for mail in first for a in mail.rcpt) == [f"{n}/TYPE=PLMN@mms.north.example" for n in (NUMBER["north"], other)]
    # One recipient of the mail was answered; the RES names nobody, so the row is set as a correlated one would be.
    with closing(sqlite3.connect(Path(link.gateway.config).parent / "mm4.db", timeout=30)) as db, db:
        db.execute("UPDATE transactions SET state = 'answered', status = 'Ok', due_at = NULL WHERE transaction_id = ? AND recipient = ?", (asked, other))
    mails = link.north.wait_for(asked, len(first) + 1)
    assert [mail.rcpt for mail in mails[len(first) :]] == [[f"{NUMBER['north']}/TYPE=PLMN@mms.north.example"]]
    link.answer("north", mails[-1])
    link.reaches(asked, "answered")
    link.empty()


def test_copies_are_private_and_carry_no_line_of_this_postfix(link: Late) -> None:
    asked = link.ask("patient")
    (mail,) = link.patient.wait_for(asked)
    wait_for(link.copies, "a copy")
    (token,) = link.copies()
    path = link.spool / token
    assert (path.stat().st_mode & 0o777, link.spool.stat().st_mode & 0o777) == (0o600, 0o700)
    assert path.read_bytes() == f"Return-Path: <{mail.mail_from}>\r\n".encode() + without_own_received(mail)
    link.answer("patient", mail)
    link.empty()


def test_a_kill_of_the_responder_forgets_nothing(link: Late) -> None:
    asked = [link.ask("north") for _ in range(5)]
    for _ in range(3):
        link.kill_responder()
    for one in asked:
        # A token that was under way at a kill may wait for Postfix's next queue run, a minute later.
        link.north.wait_for(one, 2, 3 * SECONDS)
    link.kill_responder()
    for one in asked:
        link.answer("north", link.north.wait_for(one, 2)[-1])
        link.reaches(one, "answered")
    link.empty()


def test_timers_survive_a_restart_in_every_state(link: Late) -> None:
    """waiting, overdue, failed and answered before; each goes on, or stays, after."""
    answered = link.ask("once")
    link.answer("once", link.once.wait_for(answered)[0])
    failed = link.ask("hasty")
    link.reaches(failed, "failed")
    overdue = link.ask("once")
    link.reaches(overdue, "overdue")
    waiting = link.ask("north")
    link.north.wait_for(waiting)
    stays = link.ask("patient")
    link.patient.wait_for(stays)
    wait_for(lambda: len(link.copies()) == 2, "the copies of those that wait")
    link.gateway.stop()
    orphan = link.spool / ("0" * 32)
    orphan.write_bytes(b"Return-Path: <>\r\n\r\n")
    (link.spool / ("1" * 32 + ".tmp")).write_bytes(b"cut")
    link.gateway.start()
    link.north.wait_for(waiting, 2)
    assert link.states(answered) == {NUMBER["once"]: "answered"}
    assert link.states(failed) == {NUMBER["hasty"]: "failed"}
    assert link.states(overdue) == {NUMBER["once"]: "overdue"}
    assert link.states(stays) == {NUMBER["patient"]: "waiting"}
    wait_for(lambda: not orphan.exists(), "the orphan dropped")
    for peer, one in (("north", waiting), ("patient", stays)):
        link.answer(peer, link.hops[peer].carrying(one)[-1])
        link.reaches(one, "answered")
    link.empty()
    assert len(link.hasty.carrying(failed)) == 3


def test_a_spool_without_room_sends_once() -> None:
    with Late(quota="2kB") as link:
        first = link.ask("patient")  # whose copy stays for as long as this test may take
        link.patient.wait_for(first)
        link.gateway.quiet()
        second = link.ask("hasty")
        link.reaches(second, "overdue")
        wait_for(lambda: "not sent again" in link.whats(second), "an event for the one without a copy")
        assert len(link.hasty.carrying(second)) == 1
        assert link.gateway.wait_log(r"mm4/responder.* copy=full")


def test_what_expires_in_the_queue_is_returned_and_the_bounce_comes_home(link: Late) -> None:
    link.once.stop()
    try:
        expiry = time.time() + 3
        asked = link.ask("once", expiry=formatdate(expiry, usegmt=True))
        lasting = link.ask("once")
        wait_for(lambda: [m["queue_name"] for m in link.gateway.queue()] == ["deferred", "deferred"], "two deferred messages")
        queue_id = link.traced(asked)[0]["queue_id"]
        wait_for(lambda: time.time() > expiry + 1, "the expiry")
        would = mm4("expire", "--config", link.gateway.config, "--json", "--dry-run")
        assert (json.loads(would.stdout)["queue_id"], json.loads(would.stdout)["fate"]) == (queue_id, "expired")
        assert len(link.gateway.queue()) == 2
        done = mm4("expire", "--config", link.gateway.config)
        assert done.stdout.split()[0] == queue_id
        link.reaches(asked, "bounced")
        assert [w for w in link.whats(asked) if w in ("expired", "bounced")] == ["expired", "bounced"]
        wait_for(lambda: [m["queue_id"] for m in link.gateway.queue()] == [link.traced(lasting)[0]["queue_id"]], "the other to stay alone")
        assert mm4("expire", "--config", link.gateway.config).stdout == ""
    finally:
        link.once.start()
    link.gateway.postfix("postqueue", "-f")
    link.once.wait_for(lasting)
    assert link.once.carrying(asked) == []


def test_a_copy_that_expires_in_the_queue_is_returned_too_and_none_follows(link: Late) -> None:
    expiry = time.time() + 5
    asked = link.ask("hasty", expiry=formatdate(expiry, usegmt=True))
    link.hasty.wait_for(asked)
    link.hasty.stop()
    try:
        wait_for(lambda: [m["queue_name"] for m in link.gateway.queue()][-1:] == ["deferred"], "a deferred copy")
        # Not failed: Postfix may deliver it yet.
        wait_for(lambda: "held back" in link.whats(asked), "a look at the queue")
        wait_for(lambda: time.time() > expiry + 1, "the expiry")
        link.reaches(asked, "overdue")
        assert mm4("expire", "--config", link.gateway.config).stdout.split()[1] == "hasty"
        link.reaches(asked, "bounced")
        link.gateway.quiet()
    finally:
        link.hasty.start()
    assert len(link.hasty.carrying(asked)) == 1

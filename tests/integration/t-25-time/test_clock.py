"""The wall clock of mm4's processes is set forward and back under way; Postfix's is not, nor is the monotonic one."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import new_ids, wait_for
from timely import Timely

pytestmark = pytest.mark.postfix

HERE = Path(__file__).parent
DAY = timedelta(days=1)


class Stepped(Timely):
    """A gateway whose clock is wrong by as much as a file says, at once and for all its processes."""

    def __init__(self, folder: Path) -> None:
        self.offset = timedelta()
        self.file = folder / "offset"
        self.file.write_bytes(struct.pack("l", 0))
        library = folder / "clock.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "clock.c", "-ldl"], check=True, timeout=60)
        super().__init__(env={"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self.file)})

    def now(self) -> datetime:
        """The time as mm4 has it."""
        return datetime.now(UTC) + self.offset

    def step(self, by: timedelta) -> None:
        """Set the clock."""
        self.offset += by
        with self.file.open("r+b") as file:
            file.write(struct.pack("l", int(self.offset.total_seconds())))

    def recorded(self, identifier: str) -> datetime:
        return datetime.fromisoformat(self.traced(identifier)["recorded_at"])


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Stepped]:
    with Stepped(tmp_path) as made:
        yield made


def _answered(link: Stepped, peer: str) -> str:
    """A REQ each way is delivered and answered; gives the transaction id of ours."""
    asked = link.ask(peer)
    link.answer(peer, link.hops[peer].wait_for(asked)[-1])
    link.reaches(asked, "answered")
    ids = new_ids()
    link.offer(peer, ids)
    link.mmsc.wait_for(ids[0])
    (answer,) = link.hops[peer].wait_for(ids[0])
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    return asked


def test_a_clock_that_jumps_loses_nothing_and_does_nothing_twice(link: Stepped) -> None:
    for pid in (link.gateway.daemon(), *link.gateway.children("worker"), *link.gateway.children("answerer")):
        assert "/clock.so" in Path(f"/proc/{pid}/maps").read_text(), "the clock of every process of mm4 is stepped"
    once, again = [link.ask("once") for _ in range(3)], [link.ask("again") for _ in range(3)]
    for peer, asked in (("once", once), ("again", again)):
        for one in asked:
            link.hops[peer].wait_for(one)
    ids = new_ids()
    link.offer("once", ids)
    link.once.wait_for(ids[0])

    link.step(2 * DAY)
    for one in once:
        link.reaches(one, "overdue")
    for one in again:
        first, second = link.again.wait_for(one, 2)
        assert second.header("X-Mms-Message-ID") == first.header("X-Mms-Message-ID")
        link.reaches(one, "waiting")
    assert link.recorded(_answered(link, "once")) > datetime.now(UTC) + DAY
    link.offer("once", ids)
    link.once.wait_for(ids[0], 2)

    # What waits now is due two days ahead of the clock that comes back.
    kept = [link.ask("brief") for _ in range(3)]
    for one in kept:
        link.brief.wait_for(one)
    link.step(-DAY)
    begun = time.monotonic()
    new = link.ask("brief")
    assert abs(link.recorded(new) - link.now()) < timedelta(minutes=1)
    _answered(link, "once")
    _answered(link, "again")
    link.offer("once", ids)
    link.once.wait_for(ids[0], 3)
    for one in (*kept, new):
        link.reaches(one, "overdue")
        assert link.whats(one).count("overdue") == 1
    assert time.monotonic() - begun < 40, "8 s from the step or from the REQ, 5 s until somebody looks, and what a busy host takes"
    (late,) = [event for event in link.traced(new)["events"] if event["what"] == "overdue"]
    assert datetime.fromisoformat(late["at"]) - link.recorded(new) >= timedelta(seconds=8), "not before its time either"
    # Its second pause is two hours.
    for one in again:
        due_at = datetime.fromisoformat(link.traced(one)["due_at"])
        assert link.now() + timedelta(hours=1) < due_at < link.now() + timedelta(hours=2, minutes=1)
    link.gateway.wait_log(r"mm4/timers.* warning: .*clock=\"set back\" due_sooner=")

    assert len(link.mmsc.carrying(ids[0])) == 1, "a REQ that was repeated after each step is one message"
    assert [t["state"] for t in link.gateway.trace(ids[0])] == ["answered", "duplicate", "duplicate"]
    assert len(os.listdir(link.spool)) == len(again), "the copies of what is awaited stay"
    for one in again:
        assert len(link.again.carrying(one)) == 2
        link.answer("again", link.again.carrying(one)[-1])
        link.reaches(one, "answered")
        assert [w for w in link.whats(one) if w in ("overdue", "sent again", "answer received")] == [
            "overdue", "sent again", "answer received",
        ]  # fmt: skip
    for one in once:
        assert link.whats(one).count("overdue") == 1
        link.answer("once", link.once.carrying(one)[0])
        assert link.reaches(one, "answered")["status"] == "Ok"
    wait_for(lambda: os.listdir(link.spool) == [], "an empty spool")
    assert "Traceback" not in link.gateway.log()

"""A peer that is away for longer than Postfix tries: the bounce comes home, and everybody knows who has to."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harness import mm4, new_ids, wait_for
from timely import Timely

pytestmark = pytest.mark.postfix

LATER = "451 4.3.2 Not now"


class Ended(Timely):
    """What two peers put off for the whole lifetime: a REQ for each, and our RES to one."""

    def __init__(self) -> None:
        super().__init__(on_bounce="res")
        self.asked: dict[str, str] = {}
        self.ids = new_ids()

    def __enter__(self) -> Ended:
        super().__enter__()
        try:
            self._end()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _end(self) -> None:
        self.gateway.postfix(
            "postconf", "-e", "maximal_queue_lifetime = 4s", "bounce_queue_lifetime = 4s", "queue_run_delay = 1s",
            "minimal_backoff_time = 1s", "maximal_backoff_time = 1s",
        )  # fmt: skip
        self.gateway.postfix("postfix", "reload")
        self.once.reply_rcpt = self.again.reply_rcpt = LATER
        self.asked = {peer: self.ask(peer) for peer in ("once", "again")}
        self.offer("once", self.ids)
        for asked in self.asked.values():
            wait_for(lambda asked=asked: self._run() and self.traced(asked)["state"] == "bounced", f"{asked} is bounced")  # type: ignore[misc]
        wait_for(lambda: self._run() and "answer bounced" in self.whats(self.ids[0]), "the bounce of our RES")
        self.once.reply_rcpt = self.again.reply_rcpt = "250 OK"

    def _run(self) -> bool:
        """A run of the queue. What the last one met while it was still being delivered is left to one minutes later."""
        time.sleep(0.5)
        self.gateway.postfix("postqueue", "-f")
        return True

    def findings(self) -> list[dict[str, Any]]:
        """What `mm4 check` has to say of acks."""
        said = mm4("check", "--config", self.gateway.config, "--json", check=False).stdout
        return [found for found in map(json.loads, said.splitlines()) if found["check"] == "acks" and not found["ok"]]


@pytest.fixture(scope="module")
def link() -> Iterator[Ended]:
    with Ended() as made:
        yield made


@pytest.mark.parametrize("peer", ["once", "again"])
def test_what_a_peer_puts_off_for_a_whole_lifetime_bounces_and_its_originator_is_told(link: Ended, peer: str) -> None:
    asked = link.asked[peer]
    found = link.traced(asked)
    assert (found["status"], found["due_at"], found["attempts"] or 0) == ("4.3.2", None, 0)
    (bounce,) = [event for event in found["events"] if event["what"] == "bounced"]
    assert "Not now" in bounce["detail"]
    link.mmsc.wait_for(asked)
    link.gateway.quiet()
    (told,) = link.mmsc.carrying(asked)
    assert told.header("X-Mms-Message-Type") == "MM4_forward.RES"
    assert told.header("X-Mms-Request-Status-Code") == "Error-network-problem"
    assert link.hops[peer].carrying(asked) == []
    # With retries too: Postfix has tried for long enough.
    wait_for(lambda: list(link.spool.iterdir()) == [], "no copy of what bounced")


def test_a_res_that_nobody_takes_for_a_whole_lifetime_is_noted_counted_and_shown(link: Ended) -> None:
    found = link.traced(link.ids[0])
    assert (found["state"], found["status"]) == ("answered", "Ok")
    link.gateway.wait_log(f'token={found["token"]} .*why="the answer bounced"')
    assert link.metric("mm4_bounces_total", action="failed") == 3
    (finding,) = link.findings()
    assert finding["warning"]
    assert finding["text"].startswith(f"1 RES did not arrive within the last day, peer once: {found['token']}; ")
    assert "Not now" in finding["text"]
    # The cure that it names.
    mm4("transactions", "answer", "--config", link.gateway.config, "--yes", found["token"])
    assert link.once.wait_for(link.ids[0])[0].header("X-Mms-Request-Status-Code") == "Ok"
    with link.store(read_only=True) as store:
        assert store.lost_rows(datetime.now(UTC) - timedelta(days=1), 10) == []

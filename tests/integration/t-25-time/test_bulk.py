"""Ten thousand RES that are overdue at once, on a gateway that has other things to do."""

from __future__ import annotations

import json
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from harness import mm4, new_ids, wait_for
from mm4.protocol.transaction import Direction, Message, State, Transaction
from timely import NUMBER, OURS, Timely

pytestmark = [pytest.mark.postfix, pytest.mark.slow]

NUMBER_OF = {"once": 9_700, "again": 300}


@pytest.fixture
def link() -> Iterator[Timely]:
    with Timely() as made:
        yield made


def _lying(link: Timely, peer: str, number: int) -> dict[str, str]:
    """As many REQs to the peer, sent two days ago, with their copies; gives their tokens by transaction id."""
    sent = datetime.now(UTC) - timedelta(days=2)
    found = {}
    with link.store() as store:
        for n in range(number):
            token, unique = secrets.token_hex(16), secrets.token_hex(6)
            found[f"t-{unique}@mms.gw.example"] = token
            one = Transaction(
                f"t-{unique}@mms.gw.example", f"m-{unique}@mms.gw.example", OURS, NUMBER[peer],
                state=State.WAITING, ack_requested=True, due_at=sent + timedelta(hours=1),
            )  # fmt: skip
            last = store.record(
                Message(token, Direction.OUT, peer, "MM4_forward.REQ", f"0{n:X}", socket.gethostname(), sent, (one,), accepted_at=sent)
            )
            if peer == "again":
                text = f"X-Mms-Message-Type: MM4_forward.REQ\r\nX-Mms-Transaction-ID: {one.transaction_id}\r\n\r\nbody\r\n"
                (link.spool / token).write_bytes(f"Return-Path: <{OURS}@mms.gw.example>\r\n{text}".encode())
        last.result(60)
    return found


class Traffic:
    """REQs of a peer, one after the other, while something else goes on."""

    def __init__(self, link: Timely) -> None:
        self.link = link
        self.sent: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            ids = new_ids()
            self.link.offer("brief", ids)
            self.sent.append(ids[0])

    def delays(self) -> list[int]:
        """Milliseconds from the end of each message to its verdict, in order of size."""
        found = []
        for line in self.link.gateway.log().splitlines():
            match = re.search(r"transaction_id=(\S+) .*verdict=accept .*ms=(\d+)", line)
            if match and match[1] in self.sent:
                found.append(int(match[2]))
        return sorted(found)


def test_ten_thousand_overdue_at_once_come_once_each_and_keep_nobody_waiting(link: Timely) -> None:
    with Traffic(link) as before:
        wait_for(lambda: len(before.sent) >= 20, "messages on an idle gateway")
    link.gateway.stop()
    lying = {peer: _lying(link, peer, number) for peer, number in NUMBER_OF.items()}
    queued = 0
    link.gateway.start()
    begun = time.monotonic()
    with link.store(read_only=True) as store, Traffic(link) as meanwhile:
        while store.counts().get("out/overdue", 0) < NUMBER_OF["once"] or len(link.again.mails) < NUMBER_OF["again"]:
            queued = max(queued, len(link.gateway.queue()))
            assert time.monotonic() - begun < 120, store.counts()
            time.sleep(0.5)
        seconds = time.monotonic() - begun
        wait_for(lambda: store.counts().get("out/waiting") == NUMBER_OF["again"], "what was sent again to wait")
        lives = {peer: [Counter(e["what"] for e in store.whole(token)[0]["events"]) for token in list(of.values())[::10]]
                 for peer, of in lying.items()}  # fmt: skip
        assert store.counts()["out/overdue"] == NUMBER_OF["once"]
    assert {life["overdue"] for of in lives.values() for life in of} == {1}
    assert {life["sent again"] for life in lives["again"]} == {1}

    # Every copy once, and no more of them in Postfix at a time than it delivers meanwhile.
    came = Counter(mail.header("X-Mms-Transaction-ID") for mail in link.again.mails)
    assert came == Counter(dict.fromkeys(lying["again"], 1))
    assert queued < 100, f"{queued} mails in Postfix's queue at once"

    # Messages go on, and their RES.
    assert len(meanwhile.sent) >= 10
    for name in meanwhile.sent:
        link.brief.wait_for(name)
    idle, busy = before.delays(), meanwhile.delays()
    print(f"{sum(NUMBER_OF.values())} in {seconds:.1f} s, queue {queued}; eom ms idle {_told(idle)}, meanwhile {_told(busy)}")
    assert busy[len(busy) * 9 // 10] < 1000, f"{busy} ms"

    # A line each for the first, one for the others; all are counted.
    log = link.gateway.log()
    named = re.findall(r"mm4/timers.* warning: token=\S+ .*state=overdue", log)
    others = [int(count) for count in re.findall(r'overdue="and others" count=(\d+)', log)]
    assert len(named) + sum(others) == sum(NUMBER_OF.values())
    assert len(named) <= 20 * (len(others) + 1)
    for peer, number in NUMBER_OF.items():
        assert link.metric("mm4_unanswered_total", peer=peer, result="overdue") == number
    assert link.metric("mm4_unanswered_total", peer="again", result="again") == NUMBER_OF["again"]

    # What an operator asks.
    asked = time.monotonic()
    said = json.loads(mm4("stats", "--config", link.gateway.config, "--json").stdout)
    assert (said["overdue"], said["waiting"]) == (NUMBER_OF["once"], sum(NUMBER_OF.values()))
    listed = mm4(
        "transactions", "list", "--config", link.gateway.config, "--state", "overdue", "--json", "--limit", "20000"
    ).stdout.splitlines()
    assert {json.loads(line)["token"] for line in listed} == set(lying["once"].values())
    assert len(listed) == NUMBER_OF["once"]
    print(f"stats and list in {time.monotonic() - asked:.1f} s")
    assert time.monotonic() - asked < 60


def _told(delays: list[int]) -> str:
    return f"median {delays[len(delays) // 2]}, worst {delays[-1]}, of {len(delays)}"

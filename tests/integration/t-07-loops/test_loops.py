"""Two gateways that answer each other: every message and report is acked once, and then it is quiet for ever."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, Sandbox, forward_req, free_port, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
A_NUMBER, B_NUMBER = "+447700900002", "+491511000001"
SIDES = {"a": ("127.0.0.33", "+4477009000"), "b": ("127.0.0.34", "+4915110000")}


@dataclass
class Pair:
    """Two operators, each a private Postfix with a gateway."""

    a: Sandbox
    b: Sandbox
    null: bool
    """Whether both send their acks and reports from nobody."""

    def quiet(self) -> None:
        """Wait until neither has anything left to send: one may have got something from the other meanwhile."""
        for _ in range(2):
            self.a.quiet()
            self.b.quiet()

    def verdicts(self) -> tuple[int, int]:
        """How many messages each gateway has judged so far."""
        return tuple(len(re.findall(r" verdict=", side.log())) for side in (self.a, self.b))  # type: ignore[return-value]


@pytest.fixture(scope="module", params=[("3gpp", "system"), ("tyntec", '"null"')], ids=["3gpp-system", "tyntec-null"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made: dict[str, Sandbox] = {}
    ports = {name: free_port(address) for name, (address, _) in SIDES.items()}
    with contextlib.ExitStack() as stack:
        for name, peer in (("a", "b"), ("b", "a")):
            config = YAML
            for key, value in {
                "name": name, "peer": peer, "numbers": SIDES[name][1], "dialect": request.param[0],
                "mail_from": request.param[1],
                "peer_address": SIDES[peer][0], "peer_port": str(ports[peer]),
            }.items():  # fmt: skip
                config = config.replace(f"@{key}@", value)
            sandbox = Sandbox(config, listen=SIDES[name][0], source=SIDES[name][0])
            sandbox.listen = [f"{SIDES[name][0]}:{ports[name]}"]
            made[name] = stack.enter_context(sandbox)
        yield Pair(made["a"], made["b"], request.param[1] == '"null"')


def states(side: Sandbox, identifier: str) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(t["type"], t["direction"]): (t["state"], t["status"]) for t in side.trace(identifier)}


def from_a(pair: Pair, **arguments: Any) -> str:
    """A subscriber of A sends one of B an MMS that asks for everything; its message id."""
    ids = new_ids("mms.a.example")
    content = forward_req(ids=ids, sender=A_NUMBER, to=B_NUMBER, system=None, drop=("Sender",), **arguments)
    content = re.sub(rb"(Delivery-Report|Read-Reply): No", rb"\1: Yes", content)
    sent = pair.a.send(content, source=LOCAL, mail_from=f"{A_NUMBER}@mms.a.example", rcpt=(f"{B_NUMBER}@mms.a.example",))
    assert sent.code == 250
    wait_for(lambda: any(ids[1] in str(m) for m in pair.b.maildir(B_NUMBER)), "the MMS at B")
    return ids[1]


def report(message_id: str, kind: str, says: str, *, ack: str = "Yes", more: str = "") -> bytes:
    return (
        f"From: {B_NUMBER}/TYPE=PLMN\r\nTo: {A_NUMBER}/TYPE=PLMN\r\nDate: Thu, 12 Nov 2026 02:28:01 +0200\r\n"
        f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: {kind}\r\nX-Mms-Message-ID: {message_id}\r\n"
        f"X-Mms-Ack-Request: {ack}\r\n{says}\r\n{more}\r\n"
    ).encode()


def from_b(pair: Pair, content: bytes, mail_from: str = "system-user@mms.b.example") -> int:
    return pair.b.send(content, source=LOCAL, mail_from=mail_from, rcpt=(f"{A_NUMBER}@mms.b.example",)).code


def test_a_message_and_its_two_reports_make_three_answers_and_no_more(pair: Pair) -> None:
    before = pair.verdicts()
    message_id = from_a(pair)
    assert from_b(pair, report(message_id, "MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Retrieved")) == 250
    assert from_b(pair, report(message_id, "MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read")) == 250
    answered = {
        ("MM4_forward.REQ", "out"): ("answered", "Ok"),
        ("MM4_delivery_report.REQ", "in"): ("answered", "Ok"),
        ("MM4_read_reply_report.REQ", "in"): ("answered", "Ok"),
    }
    wait_for(lambda: states(pair.a, message_id) == answered, f"answers at A: {states(pair.a, message_id)}")
    other = {(kind, {"in": "out", "out": "in"}[way]): state for (kind, way), state in answered.items()}
    wait_for(lambda: states(pair.b, message_id) == other, f"answers at B: {states(pair.b, message_id)}")
    pair.quiet()
    # At A its own message, B's RES, and two reports; at B the message, two reports of its own, and two RES.
    after = pair.verdicts()
    assert (after[0] - before[0], after[1] - before[1]) == (4, 5)
    told = [m for m in pair.a.maildir(A_NUMBER) if message_id in str(m)]
    assert sorted(m["X-Mms-MM-Status-Code"] or m["X-Mms-Read-Status"] for m in told) == ["Read", "Retrieved"]
    assert pair.a.unclaimed() == pair.b.unclaimed() == []


@pytest.mark.parametrize("sender", ["", "system-user@mms.b.example"])
def test_reports_from_nobody_and_of_class_auto_do_not_go_round(pair: Pair, sender: str) -> None:
    message_id = from_a(pair)
    pair.quiet()
    before = pair.verdicts()
    content = report(message_id, "MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read", more="X-Mms-Message-Class: Auto\r\n")
    assert from_b(pair, content, sender) == 250
    # A machine's message from nobody is not acked: nothing would end two machines' thanks.
    wanted = ("waiting", None) if pair.null else ("answered", "Ok")
    wait_for(lambda: states(pair.b, message_id).get(("MM4_read_reply_report.REQ", "out")) == wanted, f"{wanted} at B")
    wait_for(lambda: [m for m in pair.a.maildir(A_NUMBER) if message_id in str(m)], "the report at A")
    pair.quiet()
    after = pair.verdicts()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1 if pair.null else 2)


def test_a_report_about_a_report_ends_at_the_first_gateway(pair: Pair) -> None:
    """A's side reports on B's report, by the id of that report's message: nothing came to A under it but reports."""
    message_id = from_a(pair)
    assert from_b(pair, report(message_id, "MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Retrieved")) == 250
    pair.quiet()
    before = pair.verdicts()
    content = report(message_id, "MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read")
    content = content.replace(A_NUMBER.encode(), b"+x").replace(B_NUMBER.encode(), A_NUMBER.encode()).replace(b"+x", B_NUMBER.encode())
    refused = pair.a.send(content, source=LOCAL, mail_from="system-user@mms.a.example", rcpt=(f"{B_NUMBER}@mms.a.example",))
    assert refused.code == 550
    pair.quiet()
    after = pair.verdicts()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)


def test_a_res_that_asks_for_an_ack_gets_none(pair: Pair) -> None:
    """As B's MMSC might write one: it ends at B's gateway, which answers peers itself."""
    message_id = from_a(pair)
    pair.quiet()
    before = pair.verdicts()
    content = report(message_id, "MM4_forward.RES", "X-Mms-Request-Status-Code: Ok", more="X-Mms-Transaction-ID: x\r\n")
    assert from_b(pair, content) == 250
    pair.quiet()
    after = pair.verdicts()
    assert (after[0] - before[0], after[1] - before[1]) == (0, 1)


def test_a_bounce_of_a_report_comes_home_and_is_nobodys_news(pair: Pair) -> None:
    """A's subscriber is no longer served: A refuses, and B's own Postfix bounces to B's system."""
    message_id = from_a(pair)
    pair.quiet()
    before = pair.verdicts()
    _serve(pair.a, SIDES["a"][1], "+4477009999")
    try:
        assert from_b(pair, report(message_id, "MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Expired"), "") == 250
        # What comes from nobody bounces to nobody.
        wanted = "waiting" if pair.null else "bounced"
        wait_for(
            lambda: states(pair.b, message_id)["MM4_delivery_report.REQ", "out"][0] == wanted, f"{wanted} at B"
        )
        pair.quiet()
    finally:
        _serve(pair.a, "+4477009999", SIDES["a"][1])
    pair.quiet()
    after = pair.verdicts()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    assert pair.b.unclaimed() == []


def _serve(side: Sandbox, before: str, now: str) -> None:
    """Have a gateway serve other numbers, by its YAML and HUP."""
    path = Path(side.config)
    done = side.log().count("reload=done")
    path.write_text(path.read_text().replace(before, now))
    os.kill(side.daemon(), signal.SIGHUP)
    wait_for(lambda: side.log().count("reload=done") > done, "the reload")

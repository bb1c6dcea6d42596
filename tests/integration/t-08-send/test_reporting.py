"""`mm4 report` against real Postfix: a message that came in is reported to its originator, who answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from answering import Answering
from harness import NORTH, SOUTH, Link, NextHop, forward_req, mm4, new_ids, wait_for
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

FOLDER = Path(__file__).parent
ONE, TWO = "+491511000001", "+491511000002"
FINE, UNKNOWN, SILENT, FOREIGN = "+447700900101", "+447700900102", "+447700900103", "+4670000001"
ASKED = (b"X-Mms-Read-Reply", b"X-Mms-Delivery-Report")


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    north = Answering({FINE: "Ok", UNKNOWN: "Error-message-not-found", FOREIGN: "Ok"})
    with Link((FOLDER / "mm4.yaml").read_text(), {"north": north, "south": NextHop()}) as made:
        north.gateway = made.gateway
        yield made


def received(link: Link, sender: str = FINE, *, asked: bool = True, source: str = NORTH) -> str:
    """A message for two of our numbers; its id, once Postfix has it."""
    ids = new_ids("mms.north.example")
    content = forward_req(ids=ids, sender=sender, to=ONE, ack=None, system=None, tyntec=source == SOUTH)
    for header in ASKED if asked else ():
        assert header + b": No" in content
        content = content.replace(header + b": No", header + b": Yes")
    rcpt = tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in (ONE, TWO))
    assert link.gateway.send(content, source=source, rcpt=rcpt).code == 250
    return ids[1]


def report(link: Link, *arguments: str) -> subprocess.CompletedProcess[str]:
    return mm4("report", *arguments, "--config", link.gateway.config, check=False)


def rows(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str | None, str | None]]:
    return sorted((r["recipient"], r["state"], r["status"]) for r in json.loads(done.stdout)["reports"])


@pytest.mark.parametrize(("kind", "status", "field", "said"), [
    ("delivery", "RETRIEVED", "mm_status", "Retrieved"), ("read", "deleted", "read_status", "Deleted without being read"),
])  # fmt: skip
def test_every_recipient_reports_and_the_originator_answers(
    link: Link, kind: str, status: str, field: str, said: str
) -> None:
    message_id = received(link)
    done = report(link, kind, message_id, "--status", status, "--text", "gut", "--date", "2026-11-22T11:00+01:00",
                  "--wait", "50s", "--json")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done) == [(ONE, "answered", "Ok"), (TWO, "answered", "Ok")]
    mails = link.north.wait_for(message_id, 2)
    pdus = [read_message(mail.content) for mail in mails]
    assert [mail.rcpt for mail in mails] == [[f"{FINE}/TYPE=PLMN@mms.north.example"]] * 2
    assert {pdu.get("sender").number for pdu in pdus} == {ONE, TWO}
    for pdu in pdus:
        assert pdu.problems == ()
        assert (pdu.get("message_id"), pdu.get(field), pdu.get("status_text")) == (message_id, said, "gut")
        assert pdu.get("date").isoformat() == "2026-11-22T11:00:00+01:00"
        assert pdu.ack_request


def test_one_recipient_reports_in_the_peers_dialect(link: Link) -> None:
    message_id = received(link, "+33600000001", source=SOUTH)
    done = report(link, "read", message_id, "--status", "read", "--to", "01511 000002", "--wait", "50s", "--json")
    assert (done.returncode, rows(done)) == (0, [(TWO, "accepted", None)])  # south is asked for no ack
    (mail,) = link.south.wait_for(message_id)
    assert mail.rcpt == ["+33600000001/TYPE=PLMN@mm4.south.example"]
    assert mail.header("X-Mms-MM1-Message-Type") == "MM4_Read_Report.REQ"
    assert read_message(mail.content, "tyntec").problems == ()


def test_an_originator_to_whom_no_route_leads_is_told(link: Link) -> None:
    message_id = received(link, FOREIGN)
    done = report(link, "delivery", message_id, "--status", "Expired", "--to", ONE, "--wait", "50s")
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, [f"{FOREIGN}  north  answered  Ok"])


def test_a_res_with_an_error_and_no_res_are_1(link: Link) -> None:
    done = report(link, "read", received(link, UNKNOWN), "--status", "Read", "--to", ONE, "--wait", "50s", "--json")
    assert (done.returncode, rows(done)) == (1, [(ONE, "answered", "Error-message-not-found")])
    done = report(link, "read", received(link, SILENT), "--status", "Read", "--to", ONE, "--wait")
    # It gives up as north's timeout passes: whether the timers came first is theirs to say.
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split(maxsplit=3) in (
        [SILENT, "north", state, "no RES in time"] for state in ("waiting", "overdue")
    )


@pytest.mark.parametrize("kind", ["delivery", "read"])
def test_what_was_not_asked_for_stays_here(link: Link, kind: str) -> None:
    message_id = received(link, asked=False)
    status = {"delivery": "Retrieved", "read": "Read"}[kind]
    done = report(link, kind, message_id, "--status", status, "--to", ONE)
    transaction_id, said = done.stdout.splitlines()
    assert (done.returncode, said) == (0, f"suppressed, the report of {ONE}: {FINE} asked for no {kind} report")
    assert [t["state"] for t in link.gateway.trace(transaction_id)] == ["suppressed"]
    link.gateway.quiet()
    assert link.north.carrying(transaction_id) == []


def test_there_is_nothing_to_report_about_what_we_sent_or_nobody_knows(link: Link) -> None:
    sent = mm4("send", "--config", link.gateway.config, "--from", ONE, "--to", FINE, "--text", "x").stdout.strip()
    wait_for(lambda: link.gateway.trace(sent), "the message sent")
    done = report(link, "read", sent, "--status", "Read")
    assert (done.returncode, done.stderr) == (1, f"mm4: {sent} went out from here; its recipients report, not we\n")
    done = report(link, "read", "m-none@mms.north.example", "--status", "Read")
    assert (done.returncode, "no message with this id was received" in done.stderr) == (1, True)

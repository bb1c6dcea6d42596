"""One message to several peers and to our own side: each gets its own, as if the message had been for him alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import LOCAL, NORTH, SECONDS, Dialogue, Link, Mail, forward_req, mm4, new_ids, wait_for
from mm4.cli.trace import trace as trace_command
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
SIDES = ("mmsc", "mvno", "north", "south", "east")
HOPS = (*SIDES, "west")
OURS = "+491511000001"
NUMBERS = {
    "north": "+447700900101", "south": "+33600000001", "east": "+34600000001", "west": "+39600000001",
    "mmsc": "+491511000002", "mvno": "+491512000002",
}  # fmt: skip
DOMAINS = {"north": "mms.north.example", "south": "mm4.south.example", "east": "mms.east.example", "west": "mms.west.example"}
SOURCES = {"north": NORTH, "south": "127.0.0.22", "east": "127.0.0.23", "west": "127.0.0.24"}
DIALECTS = {"north": "3gpp", "south": "tyntec", "east": "bare-ids"}
SENDER = f"{OURS}/TYPE=PLMN@mms.gw.example"

Ids = tuple[str, str]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, HOPS) as made:
        yield made


def message(ids: Ids, *, sender: str = OURS, **more: Any) -> bytes:
    """A REQ whose header holds what is easily lost: 8-bit, folds, blanks, a name twice, others' names for fields."""
    content = forward_req(sender=sender, to=NUMBERS["north"], ids=ids, system="mmsc@mms.gw.example", **more)
    odd = (
        b"Subject: caf\xe9\r\n\t and more\r\nX-Any:none\r\nX-Any :  two\r\nX-Mms-Forwarded-By: +447700900003/TYPE=PLMN\r\n"
        b"x-any:\tthree\r\nX-Mms-Priority"
    )
    return content.replace(b"X-Mms-Priority", odd, 1)


def ask(link: Link, *sides: str, ids: Ids | None = None, content: bytes | None = None) -> tuple[Ids, Dialogue]:
    """A message of our MMSC to one recipient of each side."""
    ids = ids or new_ids("mms.gw.example")
    told = link.gateway.send(
        content or message(ids), source=LOCAL, mail_from=SENDER,
        rcpt=tuple(f"{NUMBERS[side]}/TYPE=PLMN@mms.gw.example" for side in sides),
    )  # fmt: skip
    assert (told.code, [code for code, _ in told.rcpt]) == (250, [250] * len(sides)), told
    return ids, told


def got(link: Link, side: str, ids: Ids) -> Mail:
    (mail,) = link.hops[side].wait_for(ids[1])
    return mail


def below_received(mail: Mail, ids: Ids) -> bytes:
    """What a next hop got, but for what is new each time: Postfix's own line on top, and the ids."""
    content = re.sub(rb"\AReceived:(?:[^\n]|\n[ \t])*\n", b"", mail.content)
    return content.replace(ids[0].encode(), b"T").replace(ids[1].encode(), b"M")


def answer(link: Link, side: str, request: Mail, status: str = "Ok") -> None:
    """The peer's RES."""
    lines = {
        "X-Mms-3GPP-MMS-Version": "5.5.0", "X-Mms-Message-Type": "MM4_forward.RES",
        "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"),
        "X-Mms-Message-ID": request.header("X-Mms-Message-ID"), "X-Mms-Request-Status-Code": status,
    }  # fmt: skip
    told = link.gateway.send(
        "".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n", source=SOURCES[side],
        mail_from=f"system@{DOMAINS[side]}", rcpt=("system-user@mms.gw.example",),
    )  # fmt: skip
    assert told.code == 250, told


def trace(link: Link, identifier: str) -> list[dict[str, Any]]:
    """What `mm4 trace` knows, in this process: it is asked often."""
    done = CliRunner().invoke(trace_command, ["--config", link.gateway.config, "--json", identifier])
    return list(json.loads(done.stdout)["transactions"])


def states(link: Link, identifier: str) -> dict[str, tuple[str, str | None]]:
    traced = trace(link, identifier)
    return {t["recipient"]: (t["state"], t["status"]) for t in traced if t["type"] == "MM4_forward.REQ"}


def reach(link: Link, identifier: str, **wanted: str) -> None:
    """Wait until each side's transaction has its state."""
    def look() -> bool:
        found = states(link, identifier)
        return all(found.get(NUMBERS[side], ("",))[0] == state for side, state in wanted.items())

    wait_for(look, f"{wanted}, not {states(link, identifier)}")


@pytest.mark.parametrize("order", [SIDES, tuple(reversed(SIDES)), ("south", "mmsc", "east", "north", "mvno")])
def test_each_side_gets_the_very_message_that_it_would_get_alone(link: Link, order: tuple[str, ...]) -> None:
    alone = {}
    for side in order:
        ids, _ = ask(link, side)
        alone[side] = below_received(got(link, side, ids), ids), got(link, side, ids)
    ids, told = ask(link, *order)
    sent = time.monotonic()
    for side in order:
        mail = got(link, side, ids)
        wanted, single = alone[side]
        assert below_received(mail, ids) == wanted, side
        assert mail.rcpt == single.rcpt
        assert re.sub("[0-9a-f]{32}", "TOKEN", mail.mail_from) == re.sub("[0-9a-f]{32}", "TOKEN", single.mail_from)
        assert mail.at - sent < 5, f"{side} {mail.at - sent:.2f} s after the 250"
    link.gateway.quiet()
    assert [len(link.hops[side].carrying(ids[1])) for side in order] == [1] * len(order)
    # Each is a message of its own, and all are found by the id, and by the queue id in the 250.
    traced = trace(link, ids[1])
    assert sorted(t["recipient"] for t in traced) == sorted(NUMBERS[side] for side in SIDES)
    assert len({t["queue_id"] for t in traced}) == len(order)
    assert {t["recipient"] for t in trace(link, told.queue_id)} == {NUMBERS[side] for side in SIDES}
    for t in traced:
        assert {u["recipient"] for u in trace(link, t["queue_id"])} >= {t["recipient"]}


def test_each_peer_reads_its_own_dialect_and_its_res_counts_for_its_own_recipient(link: Link) -> None:
    ids, _ = ask(link, "east", "mmsc", "south", "north")
    mails = {side: got(link, side, ids) for side in ("east", "mmsc", "south", "north")}
    for side, dialect in DIALECTS.items():
        pdu = read_message(mails[side].content, dialect)
        assert (pdu.valid, [p for p in pdu.problems if p.rule == "name"]) == (True, []), side
        assert pdu.get("transaction_id") == ids[0]
    assert mails["south"].header("X-Mms-MM1-Message-Type") == "MM4_Forward.REQ"
    assert mails["north"].header("X-Mms-Message-Type") == "MM4_forward.REQ"
    reach(link, ids[0], east="waiting", south="waiting", north="waiting", mmsc="accepted")
    answer(link, "south", mails["south"], "Error-service-denied")
    answer(link, "north", mails["north"])
    reach(link, ids[0], south="answered", north="answered")
    assert states(link, ids[0]) == {
        NUMBERS["east"]: ("waiting", None), NUMBERS["south"]: ("answered", "Error-service-denied"),
        NUMBERS["north"]: ("answered", "Ok"), NUMBERS["mmsc"]: ("accepted", None),
    }  # fmt: skip
    answer(link, "east", mails["east"])
    reach(link, ids[0], east="answered")


def test_a_peer_that_is_away_keeps_nobody_waiting(link: Link) -> None:
    link.east.stop()
    try:
        ids, _ = ask(link, "east", "north", "south", "mmsc")
        ids_after, _ = ask(link, "north", "east")
        for side in ("north", "south", "mmsc"):
            got(link, side, ids)
        reach(link, ids[0], east="waiting", north="waiting", south="waiting", mmsc="accepted")
        reach(link, ids_after[0], east="waiting", north="waiting")
        (own,) = (t["queue_id"] for t in trace(link, ids_after[0]) if t["peer"] == "east")
        waiting = {entry["queue_id"]: entry for entry in link.gateway.queue()}
        assert [r["address"] for r in waiting[own]["recipients"]] == [
            f"{NUMBERS['east']}/TYPE=PLMN@mms.east.example.via-east.mm4.invalid"
        ]
    finally:
        link.east.start()
    link.gateway.postfix("postqueue", "-f")
    for found in (ids, ids_after):
        got(link, "east", found)


def test_a_refusal_is_told_for_that_recipient_alone(link: Link) -> None:
    link.south.refused.add(f"{NUMBERS['south']}/TYPE=PLMN@mm4.south.example")
    try:
        ids = new_ids("mms.gw.example")
        content = message(ids).replace(b"X-Mms-Delivery-Report: No", b"X-Mms-Delivery-Report: Yes")
        ask(link, "north", "south", "mmsc", ids=ids, content=content)
        reach(link, ids[0], south="bounced")
    finally:
        link.south.refused.clear()
    got(link, "north", ids)

    def reports() -> list[Mail]:
        found = link.mmsc.carrying(ids[1])
        return [mail for mail in found if mail.header("X-Mms-Message-Type") == "MM4_delivery_report.REQ"]

    wait_for(reports, "the report")
    link.gateway.quiet()
    (report,) = reports()
    pdu = read_message(report.content)
    assert (pdu.get("sender").key, pdu.get("mm_status")) == (NUMBERS["south"], "Rejected")
    assert states(link, ids[0])[NUMBERS["north"]] == ("waiting", None)


def test_a_further_sides_mail_is_sent_again_where_no_res_comes(link: Link) -> None:
    ids, _ = ask(link, "mmsc", "west", "north")
    first, second = link.west.wait_for(ids[1], 2)
    assert below_received(first, ids) == below_received(second, ids)
    assert (first.mail_from, first.rcpt) == (second.mail_from, second.rcpt)
    answer(link, "west", second)
    reach(link, ids[0], west="answered", north="waiting")
    assert len(link.mmsc.carrying(ids[1])) == len(link.north.carrying(ids[1])) == 1


def inbound(link: Link, ids: Ids, *sides: str) -> Dialogue:
    content = forward_req(ids=ids, sender="+447700900002", to=NUMBERS["mmsc"])
    rcpt = tuple(f"{NUMBERS[side]}/TYPE=PLMN@mms.gw.example" for side in sides)
    told = link.gateway.send(content, source=NORTH, rcpt=rcpt)
    assert told.code == 250, told
    return told


def answers(link: Link, ids: Ids) -> list[Mail]:
    return [m for m in link.north.carrying(ids[1]) if m.header("X-Mms-Message-Type") == "MM4_forward.RES"]


@pytest.mark.parametrize("order", [("mmsc", "mvno", "south"), ("south", "mmsc", "mvno")])
def test_a_peers_message_to_several_sides_gets_one_res(link: Link, order: tuple[str, ...]) -> None:
    ids = new_ids()
    inbound(link, ids, *order)
    mails = {side: got(link, side, ids) for side in order}
    for side in ("mmsc", "mvno"):
        assert mails[side].rcpt == [f"{NUMBERS[side]}@mmsc.{'gw' if side == 'mmsc' else 'mvno'}.example"]
        assert re.fullmatch(rf"[0-9a-f]{{32}}@mms\.{'gw' if side == 'mmsc' else 'mvno'}\.example", mails[side].mail_from)
        assert mails[side].header("X-Mms-Ack-Request") == "No"
    assert read_message(mails["south"].content, "tyntec").get("ack_request") is True
    assert mails["south"].header("X-Mms-Originator-System") == "system-user@mms.gw.example"
    link.gateway.quiet()
    (res,) = answers(link, ids)
    assert res.header("X-Mms-Request-Status-Code") == "Ok"
    reach(link, ids[0], south="waiting")
    answer(link, "south", mails["south"])
    reach(link, ids[0], south="answered")
    # Once more: nobody gets it again, and the RES is the first one's.
    inbound(link, ids, *order)
    link.gateway.quiet()
    assert [len(answers(link, ids)), *(len(link.hops[side].carrying(ids[1])) for side in order)] == [2, 1, 1, 1]
    assert "".join(answers(link, ids)[1].header(n) or "" for n in ("X-Mms-Request-Status-Code", "Date")) == "".join(
        res.header(n) or "" for n in ("X-Mms-Request-Status-Code", "Date")
    )


def test_while_the_private_line_is_down_the_first_side_is_served_and_the_others_wait(link: Link) -> None:
    folder = Path(str(link.gateway.facts["config_directory"]))
    master = folder / "master.cf"
    before = master.read_text()
    port = re.search(r"(?m)^(127\.0\.0\.1:\d+)\s+inet.*\n(?:[ \t].*\n)*?.*no_milters", before)
    assert port, before
    link.gateway.postfix("postconf", "-MX", f"{port[1]}/inet")
    try:
        link.gateway.postfix("postfix", "reload")
        wait_for(lambda: not listens(port[1]), "the private line closed")
        ids, _ = ask(link, "mmsc", "north", "south")
        got(link, "mmsc", ids)
        (entry,) = wait_for(lambda: [e for e in link.gateway.queue() if len(e["recipients"]) == 3], "the tokens in the queue")
        shown = json.loads(mm4("queue", "--config", link.gateway.config, "--json").stdout.replace("}\n{", "},{").join("[]"))
        kinds = {(e["kind"], e["peer"]) for e in shown if e["queue_id"] == entry["queue_id"]}
        assert ("token", "north") in kinds
        assert ("token", "south") in kinds
        assert states(link, ids[0])[NUMBERS["north"]] == ("recorded", None)
    finally:
        master.write_text(before)
        link.gateway.postfix("postfix", "reload")
    for side in ("north", "south"):
        got(link, side, ids)
    # A message that was being delivered at the reload is looked at again at the next occasion only.
    wait_for(lambda: link.gateway.postfix("postqueue", "-f") or not link.gateway.queue(), "an empty queue")
    assert [len(link.hops[side].carrying(ids[1])) for side in ("mmsc", "north", "south")] == [1, 1, 1]


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_what_postfix_gives_up_to_split_is_told_its_originator(link: Link) -> None:
    link.gateway.postfix("postconf", "-e", "defer_transports=mm4-responder")
    try:
        link.gateway.postfix("postfix", "reload")
        ids = new_ids("mms.gw.example")
        content = message(ids).replace(b"X-Mms-Delivery-Report: No", b"X-Mms-Delivery-Report: Yes")
        _, told = ask(link, "mmsc", "south", ids=ids, content=content)
        wait_for(lambda: [e for e in link.gateway.queue() if e["queue_name"] == "deferred"], "the deferred tokens")
        link.gateway.postfix("postsuper", "-e", told.queue_id)
        link.gateway.postfix("postqueue", "-i", told.queue_id)
        wait_for(lambda: told.queue_id not in {e["queue_id"] for e in link.gateway.queue()}, "Postfix gave it up")
    finally:
        link.gateway.postfix("postconf", "-X", "defer_transports")
        link.gateway.postfix("postfix", "reload")

    def bounced() -> bool:
        # Asked for again: what qmgr holds in that moment, by the transport as it was, is found by no flush.
        link.gateway.postfix("postqueue", "-f")
        return states(link, ids[0])[NUMBERS["south"]][0] == "bounced"

    wait_for(bounced, "south's part to be bounced", 3 * SECONDS)
    link.gateway.quiet()
    assert link.south.carrying(ids[1]) == []
    told_of = [read_message(m.content) for m in link.mmsc.carrying(ids[1])]
    assert [pdu.get("sender").key for pdu in told_of if pdu.type == "MM4_delivery_report.REQ"] == [NUMBERS["south"]]


def test_a_responder_killed_again_and_again_loses_nothing(link: Link) -> None:
    sides = ("mmsc", "north", "south", "east")
    sent: list[Ids] = []
    kills = 0
    end = time.monotonic() + SECONDS
    while kills < 4 and time.monotonic() < end:
        sent += [ask(link, *sides)[0] for _ in range(3)]
        for pid in link.gateway.children("answerer"):
            os.kill(pid, signal.SIGKILL)
            kills += 1
    assert kills == 4
    for ids in sent:
        for side in sides:
            link.hops[side].wait_for(ids[1])
    link.gateway.quiet(180)
    twice = 0
    for ids in sent:
        counts = {side: len(link.hops[side].carrying(ids[1])) for side in sides}
        assert counts.pop("mmsc") == 1, "the first side's part goes on by itself"
        assert set(counts.values()) <= {1, 2}
        twice += sum(count - 1 for count in counts.values())
    assert twice <= 3 * kills, "each kill repeats what was under way, and that once"

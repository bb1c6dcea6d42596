"""A message from one peer to another: what its originator said of it stays said, in the other's terms, and no loop turns.

The gateway is no user agent: it forwards nobody's message, so it counts and adds no hop of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import Dialogue, Link, Mail, forward_req, new_ids
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
NUMBERS = {"north": "+447700900002", "south": "+33600000001"}
SOURCES = {"north": "127.0.0.21", "south": "127.0.0.22"}
DOMAINS = {"north": "mms.north.example", "south": "mm4.south.example"}
DIALECTS = {"north": "3gpp", "south": "tyntec"}
SENT_BY = {"north": "X-Mms-Previously-sent-by", "south": "X-Mms-Previously-Sent-By"}
SENT_DATE = {"north": "X-Mms-Previously-sent-date-and-time", "south": "Previously-sent-date-and-time"}
WAYS = [("north", "south"), ("south", "north")]
DENIED = "Error-service-denied"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML) as made:
        yield made


def pass_on(link: Link, source: str, target: str, *extra: tuple[str, str], ack: str = "No") -> tuple[str, Dialogue]:
    """A message of a peer's subscriber to one of the other peer; its message id."""
    ids = new_ids(DOMAINS[source])
    content = forward_req(
        ids=ids, sender=NUMBERS[source], to=NUMBERS[target], ack=ack, extra=extra, tyntec=source == "south"
    ).replace(b"mms.north.example", DOMAINS[source].encode())
    sender = f"{NUMBERS[source]}/TYPE=PLMN@{DOMAINS[source]}"
    rcpt = (f"{NUMBERS[target]}/TYPE=PLMN@mms.gw.example",)
    return ids[1], link.gateway.send(content, source=SOURCES[source], mail_from=sender, rcpt=rcpt)


def passed(link: Link, source: str, target: str, *extra: tuple[str, str]) -> Mail:
    message_id, dialogue = pass_on(link, source, target, *extra)
    assert dialogue.code == 250
    (mail,) = link.hops[target].wait_for(message_id)
    return mail


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_hide_travels_and_the_originators_address_with_it(link: Link, source: str, target: str) -> None:
    """Reports and charging need the address; who hides it is the recipient's side (TS 23.140 8.4.1)."""
    mail = passed(link, source, target, ("X-Mms-Sender-Visibility", "Hide"))
    pdu = read_message(mail.content, DIALECTS[target])
    assert pdu.valid
    assert (pdu.get("sender_visibility"), pdu.get("sender").value) == ("Hide", NUMBERS[source])


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_hops_and_their_counter_arrive_in_the_other_peers_terms(link: Link, source: str, target: str) -> None:
    first, second = "0, +447700900003/TYPE=PLMN", "1, Ann Example <+447700900004/TYPE=PLMN>"
    dates = "0, Thu, 12 Nov 2026 01:02:03 GMT", "1, Thu, 12 Nov 2026 02:02:03 GMT"
    hops = [(SENT_BY[source], first), (SENT_BY[source], second), *((SENT_DATE[source], date) for date in dates)]
    mail = passed(link, source, target, ("X-Mms-Forward-Counter", "2"), *hops)
    assert mail.all(SENT_BY[target]) == [first, second]
    assert mail.all(SENT_DATE[target]) == list(dates)
    assert mail.all("X-Mms-Forward-Counter") == ["2"]
    pdu = read_message(mail.content, DIALECTS[target])
    assert [p for p in pdu.problems if p.rule == "name"] == []
    assert pdu.get("forward_counter") == 2
    assert [hop["index"] for hop in pdu.as_json()["fields"]["previously_sent"]] == [0, 1]


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_a_hop_under_another_name_and_without_index_gets_both(link: Link, source: str, target: str) -> None:
    mail = passed(link, source, target, ("X-Mms-Forwarded-By", "+447700900003/TYPE=PLMN"))
    assert mail.all(SENT_BY[target]) == ["0, +447700900003/TYPE=PLMN"]
    assert mail.all("X-Mms-Forwarded-By") == []


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_a_message_that_comes_home_is_no_loop(link: Link, source: str, target: str) -> None:
    mail = passed(link, source, target, (SENT_BY[source], "0, +491511000001/TYPE=PLMN@mms.gw.example"),
                  (SENT_BY[source], "1, +447700900003/TYPE=PLMN@mms.elsewhere.example"), ("X-Mms-Forward-Counter", "10"))  # fmt: skip
    assert len(mail.all(SENT_BY[target])) == 2


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize(
    "loop",
    [
        [("X-Mms-Forward-Counter", "11")],
        [("hop", "0, +491511000001/TYPE=PLMN@mms.gw.example"), ("hop", "2, +491511000001/TYPE=PLMN@MMS.GW.example")],
        [("Received", f"from a by b; {n}") for n in range(31)],
    ],
    ids=["forward-counter", "own-domain-twice", "received-lines"],
)
@pytest.mark.parametrize("ack", ["Yes", "No"])
def test_a_loop_is_denied(link: Link, source: str, target: str, loop: list[tuple[str, str]], ack: str) -> None:
    lines = [(SENT_BY[source] if name == "hop" else name, value) for name, value in loop]
    message_id, dialogue = pass_on(link, source, target, *lines, ack=ack)
    if ack == "Yes":
        assert dialogue.code == 250
        (answer,) = link.hops[source].wait_for(message_id)
        assert answer.header("X-Mms-Request-Status-Code") == DENIED
    else:
        assert (dialogue.code, (dialogue.data or (0, ""))[1][:5]) == (550, "5.7.1")
    link.gateway.quiet()
    assert link.hops[target].carrying(message_id) == []


@pytest.mark.parametrize(("source", "target"), WAYS)
def test_release_6_elements_stay_as_they_are(link: Link, source: str, target: str) -> None:
    elements = (
        ("X-Mms-Applic-ID", "x-wap-application:game.ua"), ("X-Mms-Reply-Applic-ID", "x-wap-application:reply"),
        ("X-Mms-Aux-Applic-Info", "level 3"), ("X-Mms-Content-Class", "image-rich"), ("X-Mms-Drm-Content", "No"),
        ("X-Mms-Adaptation-Allowed", "Yes"), ("X-Mms-MMSIP-Address", "sip:a@ims.example"),
        ("X-Mms-Forward-Route", "<sip:b@ims.example>"), ("X-Mms-Return-Route", "<sip:c@ims.example>"),
    )  # fmt: skip
    mail = passed(link, source, target, *elements)
    assert {name: mail.all(name) for name, _ in elements} == {name: [value] for name, value in elements}

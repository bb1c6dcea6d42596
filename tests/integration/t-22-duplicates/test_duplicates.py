"""The same REQ more than once: one delivery, and a RES, the same to the byte, for each that was answered 250."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness import LOCAL, NORTH, Dialogue, Link, forward_req, headers_of, new_ids, wait_for

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
FIRST, SECOND = "+491511000001", "+491511000002"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("mmsc", "north", "south", "east")) as made:
        yield made


def send(link: Link, content: bytes, *numbers: str) -> Dialogue:
    rcpt = tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in numbers or (FIRST,))
    return link.gateway.send(content, source=NORTH, rcpt=rcpt)


def settled(link: Link, dialogue: Dialogue) -> None:
    """Until Postfix has shown that it has the message: before that the next copy is told to come again."""
    link.gateway.wait_log(f"queue_id={dialogue.queue_id} token=")
    link.gateway.quiet()


def test_a_req_that_comes_again_is_not_delivered_again_and_gets_the_same_res(link: Link) -> None:
    ids = new_ids()
    settled(link, send(link, forward_req(ids=ids)))
    for _ in range(3):
        dialogue = send(link, forward_req(ids=ids))
        assert dialogue.code == 250
        settled(link, dialogue)
    assert len(link.mmsc.carrying(ids[1])) == 1
    answers = link.north.wait_for(ids[0], 4)
    assert len(answers) == 4
    lines = [[(n, v) for n, v in headers_of(a.content) if n != "Received"] for a in answers]
    assert lines[0] == lines[1] == lines[2] == lines[3]
    (line,) = link.gateway.verdicts(dialogue.queue_id)
    assert 'reason="a duplicate"' in line
    states = sorted(t["state"] for t in link.gateway.trace(ids[1]))
    assert states == ["answered", "duplicate", "duplicate", "duplicate"]


def test_copies_that_race_on_many_connections_are_delivered_once(link: Link) -> None:
    ids = new_ids()
    content = forward_req(ids=ids)
    with ThreadPoolExecutor(8) as pool:
        dialogues = list(pool.map(lambda _: send(link, content), range(16)))
    taken = [d for d in dialogues if d.code == 250]
    again = [d for d in dialogues if d.code != 250]
    assert taken
    assert {d.data[1][:5] for d in again if d.data} <= {"4.7.1"}
    link.gateway.quiet()
    # Those that were told so come again, as a peer's MTA does.
    for _ in again:
        dialogue = wait_for(lambda: d if (d := send(link, content)).code == 250 else None, "the repetition")
        assert dialogue
        link.gateway.quiet()
    assert len(link.mmsc.carrying(ids[1])) == 1
    assert len(link.north.wait_for(ids[0], 16)) == 16


def test_a_further_recipient_of_the_same_message_gets_it(link: Link) -> None:
    """Some systems send one mail for each recipient, all with the same ids."""
    ids = new_ids()
    settled(link, send(link, forward_req(ids=ids), FIRST))
    settled(link, send(link, forward_req(ids=ids), FIRST, SECOND))
    assert sorted(m.rcpt[0] for m in link.mmsc.carrying(ids[1])) == [f"{n}@mmsc.gw.example" for n in (FIRST, SECOND)]
    assert len(link.north.wait_for(ids[0], 2)) == 2


def test_the_same_ids_with_another_subject_or_picture_are_another_message(link: Link) -> None:
    ids = new_ids()
    settled(link, send(link, forward_req(ids=ids)))
    other = send(link, forward_req(ids=ids, extra=(("Subject", "another"),)))
    settled(link, other)
    settled(link, send(link, forward_req(ids=ids, body=b"R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7\r\n" * 100)))
    assert len(link.mmsc.carrying(ids[1])) == 3
    (line,) = link.gateway.verdicts(other.queue_id)
    assert "other content" in line


def test_another_peers_message_with_the_same_ids_is_its_own(link: Link) -> None:
    ids = new_ids()
    settled(link, send(link, forward_req(ids=ids)))
    content = forward_req(ids=ids, sender="+34600000001").replace(b"mms.north.example", b"mms.east.example")
    ids_of_north = ids[0].encode() in content
    dialogue = link.gateway.send(content, source="127.0.0.23", mail_from="+34600000001@mms.east.example")
    assert (dialogue.code, ids_of_north) == (250, False)


def test_a_refused_one_is_answered_the_same_again(link: Link) -> None:
    ids = new_ids()
    content = forward_req(ids=ids, drop=("Date",))
    for count in (1, 2):
        settled(link, send(link, content))
        answers = link.north.wait_for(ids[0], count)
        assert {a.header("X-Mms-Request-Status-Code") for a in answers} == {"Error-message-format-corrupt"}
    assert link.mmsc.carrying(ids[1]) == []


def test_a_report_that_comes_again_is_passed_on_once(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    sent = forward_req(ids=ids, sender=FIRST, to="+447700900101").replace(b"@mms.north.example", b"@mms.gw.example")
    rcpt = ("+447700900101/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(sent, source=LOCAL, mail_from=f"{FIRST}@mms.gw.example", rcpt=rcpt).code == 250
    link.north.wait_for(ids[1])
    report = new_ids()[0]
    content = (
        f"From: +447700900101/TYPE=PLMN\r\nTo: {FIRST}/TYPE=PLMN\r\nDate: Thu, 12 Nov 2026 02:28:01 +0200\r\n"
        f"Sender: system-user@mms.north.example\r\nX-Mms-3GPP-MMS-Version: 5.5.0\r\n"
        f"X-Mms-Message-Type: MM4_delivery_report.REQ\r\nX-Mms-Transaction-ID: {report}\r\nX-Mms-Message-ID: {ids[1]}\r\n"
        "X-Mms-Ack-Request: Yes\r\nX-Mms-MM-Status-Code: Retrieved\r\n\r\n"
    ).encode()
    for _ in range(2):
        settled(link, link.gateway.send(content, source=NORTH, mail_from="system-user@mms.north.example"))
    assert len(link.mmsc.carrying(report)) == 1
    assert len(link.north.wait_for(report, 2)) == 2
    retrieved = content.replace(b"Retrieved", b"Rejected")
    settled(link, link.gateway.send(retrieved, source=NORTH, mail_from="system-user@mms.north.example"))
    assert len(link.mmsc.carrying(report)) == 2, "with other news it is no duplicate"


def test_our_own_side_may_send_one_again(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    sent = forward_req(ids=ids, sender=FIRST, to="+447700900101").replace(b"@mms.north.example", b"@mms.gw.example")
    for count in (1, 2):
        rcpt = ("+447700900101/TYPE=PLMN@mms.gw.example",)
        assert link.gateway.send(sent, source=LOCAL, mail_from=f"{FIRST}@mms.gw.example", rcpt=rcpt).code == 250
        link.north.wait_for(ids[1], count)

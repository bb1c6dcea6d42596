"""A bounce comes home to the responder, whoever made it; the RES is out, and nobody outside gets a second word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import LOCAL, NORTH, Link, Mail, forward_req, new_ids, wait_for

pytestmark = pytest.mark.postfix


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link((Path(__file__).parent / "mm4.yaml").read_text(), hops=("mmsc", "north")) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(link: Link) -> Iterator[None]:
    """Every hop takes mail and has none; what a test leaves behind in the queue is a failure of that test."""
    for hop in (link.mmsc, link.north):
        hop.mails.clear()
        hop.reply_rcpt = hop.reply_data = "250 OK"
    yield
    link.gateway.quiet()
    queue = Path(link.gateway.facts["queue_directory"])
    kept = [queue / name for name in ("bounce", "defer", "trace", "corrupt", "hold")]
    left = [file for folder in kept for file in folder.rglob("*") if file.is_file()]
    assert left == [], "Postfix keeps a record of something that is over"
    assert link.gateway.unclaimed() == [], "a bounce of ours was not known again"


def _bounced(link: Link, identifier: str) -> dict[str, object]:
    """The transaction of this id, once a bounce has been noted for it."""

    def look() -> dict[str, object] | None:
        (transaction,) = link.gateway.trace(identifier)
        return transaction if transaction["state"] == "bounced" else None

    found = wait_for(look, f"a bounce of {identifier} in mm4 trace")
    assert found is not None
    return found


def _words(transaction: dict[str, object]) -> list[str]:
    events = transaction["events"]
    assert isinstance(events, list)
    return [event["what"] for event in events]


def _only_the_answer(link: Link, identifier: str) -> Mail:
    """The RES; fails if the peer got anything else, a bounce for one."""
    link.north.wait_for(identifier)
    link.gateway.quiet()
    (answer,) = link.north.mails
    assert answer.header("X-Mms-Message-Type") == "MM4_forward.RES"
    assert answer.header("X-Mms-Request-Status-Code") == "Ok"
    assert answer.rcpt == ["PostMaster@mms.north.example"]
    return answer


@pytest.mark.parametrize("where", ["reply_rcpt", "reply_data"])
def test_an_mmsc_that_refuses_is_noted_and_the_peer_gets_its_res_and_no_bounce(link: Link, where: str) -> None:
    setattr(link.mmsc, where, "550 5.1.1 No such subscriber")
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    transaction = _bounced(link, ids[1])
    _only_the_answer(link, ids[0])
    assert transaction["recipient"] == "+491511000001"
    assert "MM4_forward.RES Ok submitted" in _words(transaction)
    assert _words(transaction)[-1] == "bounced"
    assert "No such subscriber" in str(transaction["events"])


def test_of_two_recipients_the_refused_one_is_noted(link: Link) -> None:
    ids = new_ids()
    link.mmsc.refused.add("+491511000002@mmsc.gw.example")
    recipients = tuple(f"+49151100000{n}/TYPE=PLMN@mms.gw.example" for n in (1, 2))
    assert link.gateway.send(forward_req(ids=ids), rcpt=recipients).code == 250
    wait_for(lambda: "bounced" in {t["state"] for t in link.gateway.trace(ids[1])}, "the bounce")
    _only_the_answer(link, ids[0])
    assert {t["recipient"]: t["state"] for t in link.gateway.trace(ids[1])} == {
        "+491511000001": "answered",
        "+491511000002": "bounced",
    }


def test_an_mmsc_that_bounces_later_is_noted_and_the_peer_hears_nothing_of_it(link: Link) -> None:
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    (delivered,) = link.mmsc.wait_for(ids[0])
    _only_the_answer(link, ids[0])
    report = _report(to=delivered.mail_from, recipient=delivered.rcpt[0], original=delivered.content)
    dialogue = link.gateway.send(report, source=LOCAL, mail_from="", rcpt=(delivered.mail_from,))
    assert dialogue.code == 250, dialogue
    transaction = _bounced(link, ids[1])
    _only_the_answer(link, ids[0])
    assert "Mailbox full" in str(transaction["events"])
    assert len(link.mmsc.mails) == 1


@pytest.mark.parametrize("where", ["reply_rcpt", "reply_data"])
def test_what_a_peer_refuses_is_noted_and_nobody_outside_is_told(link: Link, where: str) -> None:
    setattr(link.north, where, "550 5.1.1 No such number")
    ids = new_ids("mms.gw.example")
    message = forward_req(sender="+491511000001", to="+447700900101", ids=ids, system=None)
    dialogue = link.gateway.send(
        message, source=LOCAL, mail_from="+491511000001/TYPE=PLMN@mms.gw.example",
        rcpt=("+447700900101/TYPE=PLMN@mms.gw.example",),
    )  # fmt: skip
    assert dialogue.code == 250, dialogue
    transaction = _bounced(link, ids[1])
    assert (transaction["direction"], transaction["peer"]) == ("out", "north")
    assert transaction["recipient"] == "+447700900101"
    assert "No such number" in str(transaction["events"])
    link.gateway.quiet()
    assert link.north.mails == link.mmsc.mails == []


def test_a_peer_that_bounces_a_subscribers_mms_later_reaches_the_responder_and_not_the_mmsc(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    message = forward_req(sender="+491511000001", to="+447700900101", ids=ids, system=None)
    originator = "+491511000001/TYPE=PLMN@mms.gw.example"
    recipient = "+447700900101/TYPE=PLMN@mms.gw.example"
    assert link.gateway.send(message, source=LOCAL, mail_from=originator, rcpt=(recipient,)).code == 250
    (sent,) = link.north.wait_for(ids[0])
    assert sent.mail_from == originator
    report = _report(to=sent.mail_from, recipient=sent.rcpt[0], original=sent.content)
    assert link.gateway.send(report, source=NORTH, mail_from="", rcpt=(originator,)).code == 250
    _kept_for_a_human(link, ids[1])
    assert link.mmsc.mails == []
    assert len(link.north.mails) == 1


def test_an_ack_that_the_peer_refuses_comes_home_and_goes_to_nobody_else(link: Link) -> None:
    link.north.reply_rcpt = "550 5.1.1 No such system"
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    _kept_for_a_human(link, ids[1])
    assert link.north.mails == []
    assert len(link.mmsc.wait_for(ids[0])) == 1


def test_an_ack_that_the_peer_bounces_later_comes_home_and_goes_to_nobody_else(link: Link) -> None:
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    answer = _only_the_answer(link, ids[0])
    report = _report(to=answer.mail_from, recipient=answer.rcpt[0], original=answer.content)
    assert link.gateway.send(report, source=NORTH, mail_from="", rcpt=(answer.mail_from,)).code == 250
    _kept_for_a_human(link, ids[1])
    _only_the_answer(link, ids[0])


def _kept_for_a_human(link: Link, message_id: str) -> None:
    """The bounce names no token, so it is kept whole, and the log says which message it is about."""
    (file,) = wait_for(link.gateway.unclaimed, "the bounce among what nobody claims")
    assert message_id in file.read_text()
    link.gateway.wait_log(f"why=unclaimed.*message_id={message_id}")
    link.gateway.quiet()
    file.unlink()


def _report(*, to: str, recipient: str, original: bytes) -> bytes:
    """A delivery status notification as a foreign MTA writes it, without the ENVID that it never saw."""
    headers = original.partition(b"\r\n\r\n")[0]
    head = (
        "Date: Thu, 12 Nov 2026 02:40:00 +0000\r\n"
        "From: MAILER-DAEMON@mmsc.gw.example (Mail Delivery System)\r\n"
        f"To: {to}\r\n"
        "Subject: Undelivered Mail Returned to Sender\r\n"
        "Message-ID: <dsn-1@mmsc.gw.example>\r\n"
        "Auto-Submitted: auto-replied\r\n"
        "MIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b1"\r\n\r\n'
        "--b1\r\nContent-Type: text/plain\r\n\r\nI am sorry.\r\n"
        "--b1\r\nContent-Type: message/delivery-status\r\n\r\n"
        "Reporting-MTA: dns; mmsc.gw.example\r\n\r\n"
        f"Final-Recipient: rfc822;{recipient}\r\nAction: failed\r\nStatus: 5.2.2\r\n"
        "Diagnostic-Code: smtp; 552 5.2.2 Mailbox full\r\n\r\n"
        "--b1\r\nContent-Type: text/rfc822-headers\r\n\r\n"
    )
    return head.encode() + headers + b"\r\n\r\n--b1--\r\n"

"""A bounce comes home to the responder, whoever made it; the RES is out, and nobody outside gets a second word."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import LOCAL, NORTH, SOUTH, Link, Mail, forward_req, new_ids, wait_for
from mm4.postfix.settings import read_config
from mm4.postfix.submit import Submitter

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
    assert "Mailbox full" in str(_bounced(link, ids[1])["events"])
    assert link.mmsc.mails == []
    assert len(link.north.mails) == 1


def test_an_ack_that_the_peer_refuses_comes_home_and_goes_to_nobody_else(link: Link) -> None:
    link.north.reply_rcpt = "550 5.1.1 No such system"
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    event = _answer_bounced(link, ids[1])
    assert "No such system" in event["detail"]
    assert link.north.mails == []
    assert len(link.mmsc.wait_for(ids[0])) == 1


def test_an_ack_that_the_peer_bounces_later_comes_home_and_goes_to_nobody_else(link: Link) -> None:
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids)).code == 250
    answer = _only_the_answer(link, ids[0])
    report = _report(to=answer.mail_from, recipient=answer.rcpt[0], original=answer.content)
    assert link.gateway.send(report, source=NORTH, mail_from="", rcpt=(answer.mail_from,)).code == 250
    assert "Mailbox full" in _answer_bounced(link, ids[1])["detail"]
    _only_the_answer(link, ids[0])


def test_a_bounce_of_what_we_submit_by_smtp_brings_our_envid_back(link: Link) -> None:
    link.north.reply_rcpt = "550 5.1.1 No such system"
    unknown = secrets.token_hex(16) + ".answer"
    mail = b"From: system-user@mms.gw.example\r\nSubject: x\r\n\r\n"
    endpoint = read_config(link.gateway.config)[0].service.submit

    async def submit() -> None:
        submitter = Submitter("smtp", address=(endpoint.host, endpoint.port))
        await submitter.submit("system-user@mms.gw.example", "a@mms.north.example.via-north.mm4.invalid", mail, unknown)
        await submitter.close()

    asyncio.run(submit())
    (file,) = wait_for(link.gateway.unclaimed, "the bounce, whose token nobody knows")
    link.gateway.quiet()
    text = file.read_text()
    file.unlink()
    assert f"Original-Envelope-Id: {unknown}\n" in text
    assert link.north.mails == []


def _answer_bounced(link: Link, identifier: str) -> dict[str, str]:
    """The event that our RES came back, on the message that it answers; the message itself is answered, not bounced."""

    def look() -> dict[str, str] | None:
        (transaction,) = link.gateway.trace(identifier)
        return next((event for event in transaction["events"] if event["what"] == "answer bounced"), None)

    found = wait_for(look, f"the bounce of the RES to {identifier} in mm4 trace")
    assert found is not None
    link.gateway.quiet()
    (transaction,) = link.gateway.trace(identifier)
    assert transaction["state"] == "answered"
    return found


# -- what the local originator is told

ASKED = (b"\r\nX-Mms-Delivery-Report: No\r\n", b"\r\nX-Mms-Delivery-Report: Yes\r\n")
NUMBERS = ("+447700900101", "+447700900102")


def _outward(link: Link, ids: tuple[str, str], *, asked: bool = True, to: tuple[str, ...] = NUMBERS[:1]) -> None:
    message = forward_req(sender="+491511000001", to=to[0], ids=ids, system=None)
    if asked:
        message = message.replace(*ASKED)
    dialogue = link.gateway.send(
        message, source=LOCAL, mail_from="+491511000001/TYPE=PLMN@mms.gw.example",
        rcpt=tuple(f"{number}/TYPE=PLMN@mms.gw.example" for number in to),
    )  # fmt: skip
    assert dialogue.code == 250, dialogue


def _told(link: Link, identifier: str, count: int = 1) -> list[Mail]:
    """The delivery reports that the MMSC got about a message."""
    found = link.mmsc.wait_for(identifier, count)
    link.gateway.quiet()
    assert len(link.mmsc.mails) == count == len(found)
    for report in found:
        assert report.header("X-Mms-Message-Type") == "MM4_delivery_report.REQ"
        assert report.header("X-Mms-Ack-Request") == "No"
        assert report.rcpt == ["+491511000001@mmsc.gw.example"]
        assert (report.header("To") or "").startswith("+491511000001/TYPE=PLMN@mms.gw.example")
    return found


def _reports(link: Link, identifier: str) -> list[dict[str, object]]:
    return [t for t in link.gateway.trace(identifier) if t["type"] == "MM4_delivery_report.REQ"]


@pytest.mark.parametrize(
    ("where", "reply", "status"),
    [
        ("reply_rcpt", "550 5.1.1 No such number", "Rejected"),
        ("reply_data", "554 5.6.0 No such picture", "Rejected"),
        ("reply_data", "550 5.4.7 Too late", "Expired"),
    ],
)
def test_an_originator_who_asked_is_told_that_the_peer_refused(link: Link, where: str, reply: str, status: str) -> None:
    setattr(link.north, where, reply)
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (report,) = _told(link, ids[1])
    assert report.header("X-Mms-MM-Status-Code") == status
    assert report.header("From") == "+447700900101/TYPE=PLMN@mms.north.example"
    assert reply[4:] in (report.header("X-Mms-Status-Text") or "")
    assert re.fullmatch(r"[0-9a-f]{32}@mms\.gw\.example", report.mail_from)
    assert report.header("X-Mms-Transaction-ID") not in (None, f'"{ids[0]}"')
    (kept,) = _reports(link, ids[1])
    assert (kept["direction"], kept["peer"], kept["report"], kept["state"]) == ("in", "north", status, "accepted")
    assert link.north.mails == []


def test_an_originator_who_did_not_ask_is_told_nothing(link: Link) -> None:
    link.north.reply_rcpt = "550 5.1.1 No such number"
    ids = new_ids("mms.gw.example")
    _outward(link, ids, asked=False)
    _bounced(link, ids[1])
    link.gateway.quiet()
    assert link.mmsc.mails == link.north.mails == []


def test_what_a_peer_defers_until_postfix_gives_up_is_indeterminate(link: Link) -> None:
    link.north.reply_rcpt = "450 4.2.1 Not now"
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (waiting,) = wait_for(lambda: [m for m in link.gateway.queue() if m["queue_name"] == "deferred"], "a deferred REQ")
    link.gateway.postfix("postsuper", "-e", waiting["queue_id"])
    link.gateway.postfix("postqueue", "-f")
    (report,) = _told(link, ids[1])
    assert report.header("X-Mms-MM-Status-Code") == "Indeterminate"


def test_several_recipients_in_one_bounce_are_several_reports(link: Link) -> None:
    link.north.reply_data = "554 5.7.1 Not from you"
    ids = new_ids("mms.gw.example")
    _outward(link, ids, to=NUMBERS)
    reports = _told(link, ids[1], 2)
    assert {report.header("From") for report in reports} == {f"{n}/TYPE=PLMN@mms.north.example" for n in NUMBERS}
    assert len({report.header("X-Mms-Transaction-ID") for report in reports}) == 2
    assert link.gateway.log().count("the originator cannot be told") == 0


def test_a_report_of_ours_that_bounces_is_noted_and_tells_nobody(link: Link) -> None:
    link.north.reply_rcpt = "550 5.1.1 No such number"
    link.mmsc.reply_rcpt = "550 5.1.1 No such subscriber"
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (kept,) = wait_for(lambda: [t for t in _reports(link, ids[1]) if t["state"] == "bounced"], "the report's bounce")
    assert "No such subscriber" in str(kept["events"])
    link.gateway.quiet()
    assert link.mmsc.mails == link.north.mails == []
    assert len(link.gateway.trace(ids[1])) == 2


def test_a_bounce_that_the_peer_sends_later_tells_the_originator_once(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (sent,) = link.north.wait_for(ids[0])
    report = _report(to=sent.mail_from, recipient=sent.rcpt[0], original=sent.content)
    for _ in range(2):
        assert link.gateway.send(report, source=NORTH, mail_from="", rcpt=(sent.mail_from,)).code == 250
    (told,) = _told(link, ids[1])
    assert told.header("X-Mms-MM-Status-Code") == "Rejected"


def test_a_plain_bounce_is_known_by_the_headers_that_it_returns(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (sent,) = link.north.wait_for(ids[0])
    plain = (
        b"From: MAILER-DAEMON@mms.north.example\r\nTo: nobody\r\nSubject: failure notice\r\n\r\n"
        b"Hi. I'm afraid I wasn't able to deliver your message.\r\n<" + sent.rcpt[0].encode() + b">:\r\n"
        b"Sorry, no mailbox here by that name. (#5.1.1)\r\n\r\n--- Below this line is a copy of the message.\r\n\r\n"
    ) + sent.content
    assert link.gateway.send(plain, source=NORTH, mail_from="", rcpt=(sent.mail_from,)).code == 250
    (told,) = _told(link, ids[1])
    assert told.header("X-Mms-MM-Status-Code") == "Rejected"
    assert "no mailbox here" in str(_reports(link, ids[1])) or "no mailbox here" in str(link.gateway.trace(ids[1]))


def test_one_peer_cannot_bounce_what_went_to_another(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    _outward(link, ids)
    (sent,) = link.north.wait_for(ids[0])
    report = _report(to=sent.mail_from, recipient=sent.rcpt[0], original=sent.content)
    assert link.gateway.send(report, source=SOUTH, mail_from="", rcpt=(sent.mail_from,)).code == 250
    (file,) = wait_for(link.gateway.unclaimed, "the bounce among what nobody claims")
    assert ids[1] in file.read_text()
    link.gateway.wait_log(f"why=unclaimed.*message_id={ids[1]}|message_id={ids[1]}.*why=unclaimed")
    link.gateway.quiet()
    file.unlink()
    (transaction,) = link.gateway.trace(ids[1])
    assert transaction["state"] == "waiting"
    assert link.mmsc.mails == []


def test_a_report_of_the_mmsc_that_the_peer_refuses_is_noted(link: Link) -> None:
    ids = new_ids()
    assert link.gateway.send(forward_req(ids=ids).replace(*ASKED)).code == 250
    _only_the_answer(link, ids[0])
    link.north.reply_rcpt = "550 5.1.1 No such number"
    report = (
        "From: +491511000001/TYPE=PLMN\r\nX-Mms-Message-Type: MM4_delivery_report.REQ\r\n"
        f"X-Mms-Message-ID: {ids[1]}\r\nX-Mms-MM-Status-Code: Retrieved\r\n\r\n"
    ).encode()
    dialogue = link.gateway.send(
        report, source=LOCAL, mail_from="", rcpt=("+447700900002/TYPE=PLMN@mms.north.example",)
    )
    assert dialogue.code == 250, dialogue
    wait_for(lambda: [t for t in _reports(link, ids[1]) if t["state"] == "bounced"], "the report's bounce")
    link.gateway.quiet()
    assert len(link.north.mails) == 1  # the RES
    assert len(link.mmsc.mails) == 1  # the message


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

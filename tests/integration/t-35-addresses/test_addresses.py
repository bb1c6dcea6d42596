"""Addresses as each side wants them, senders who hide, and Internet mail, on real Postfix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import LOCAL, NORTH, Link, Mail, forward_req, new_ids, wait_for
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
OURS, THEIRS, NOBODY = "+491511000001", "+447700900101", "anonymous@anonymous.invalid"


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("mmsc", "north", "operator", "beyond")) as running:
        running.north.refused.add("447700900404@mms.north.example")
        running.beyond.refused.add("gone@office.example")
        yield running


def outward(link: Link, rcpt: str, *, to: str = THEIRS, extra: tuple[tuple[str, str], ...] = ()) -> str:
    """A REQ of our MMSC; gives its transaction id."""
    ids = new_ids("mms.gw.example")
    message = forward_req(sender=OURS, to=to, ids=ids, system="mmsc@mms.gw.example", extra=extra,
                          drop=("X-Mms-Delivery-Report", "X-Mms-Priority"))  # fmt: skip
    told = link.gateway.send(message, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=(rcpt,))
    assert told.code == 250, told
    return ids[0]


def state(link: Link, identifier: str) -> list[tuple[str, str]]:
    return [(t["state"], t["recipient"]) for t in link.gateway.trace(identifier) if t["type"] == "MM4_forward.REQ"]


def test_a_peer_reads_its_own_forms_and_its_refusal_is_understood(link: Link) -> None:
    identifier = outward(link, f"{THEIRS}/TYPE=PLMN@mms.gw.example")
    (mail,) = link.north.wait_for(identifier)
    assert (mail.mail_from, mail.rcpt) == ("491511000001/TYPE=PLMN@mms.gw.example", ["447700900101@mms.north.example"])
    assert (mail.header("From"), mail.header("To")) == ("491511000001", "447700900101")
    gone = outward(link, "+447700900404/TYPE=PLMN@mms.gw.example", to="+447700900404")
    wait_for(lambda: state(link, gone) == [("bounced", "+447700900404")], "the bounce of the second")


def test_the_operators_codes_in_the_envelope(link: Link) -> None:
    identifier = outward(link, "+33600000001/TYPE=PLMN@mms.mnc015.mcc234.gprs", to="+33600000001")
    (mail,) = link.operator.wait_for(identifier)
    assert mail.rcpt == ["+33600000001/TYPE=PLMN@mms.mnc015.mcc234.gprs"]
    told = link.gateway.send(forward_req(sender=OURS, to="+33600000001", ids=new_ids()), source=LOCAL,
                             mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=("+33600000001/TYPE=PLMN@mms.gw.example",))  # fmt: skip
    assert told.rcpt[0] == (451, "4.3.5 Its operator is not known, and the peer's addresses need it")


def hidden(link: Link) -> tuple[tuple[str, str], Mail]:
    """A message of one who hides, as our MMSC gets it, and its ids."""
    ids = new_ids()
    extra = (("X-Mms-Sender-Visibility", "Hide"), ("Reply-To", "+447700900002@mms.north.example"))
    message = forward_req(ids=ids, extra=extra, drop=("X-Mms-Delivery-Report", "X-Mms-Read-Reply"))
    message = message.replace(b"X-Mms-Priority", b"X-Mms-Delivery-Report: Yes\r\nX-Mms-Read-Reply: Yes\r\nX-Mms-Priority", 1)
    assert link.gateway.send(message).code == 250
    (mail,) = link.mmsc.wait_for(ids[1])
    return ids, mail


def test_who_hides_is_nobody_to_our_side_and_gets_both_reports(link: Link) -> None:
    ids, mail = hidden(link)
    assert mail.rcpt == ["01511000001@mmsc.gw.example"]
    assert (mail.header("From"), mail.header("To"), mail.header("Sender")) == (NOBODY, f"{OURS}@mms.gw.example", None)
    assert b"7700900002" not in mail.content.split(b"\r\n\r\n")[0]
    for kind, said in (("MM4_delivery_report.REQ", "X-Mms-MM-Status-Code: Retrieved"), ("MM4_read_reply_report.REQ", "X-Mms-Read-Status: Read")):
        own = new_ids("mms.gw.example")[0]
        report = (
            f"From: {OURS}/TYPE=PLMN\r\nTo: {NOBODY}\r\nDate: Thu, 12 Nov 2026 02:30:01 +0200\r\nX-Mms-3GPP-MMS-Version: 5.5.0\r\n"
            f"X-Mms-Message-Type: {kind}\r\nX-Mms-Transaction-ID: {own}\r\nX-Mms-Message-ID: {ids[1]}\r\n{said}\r\n\r\n"
        )
        told = link.gateway.send(report.encode(), source=LOCAL, mail_from="", rcpt=(NOBODY,))
        assert told.code == 250, told
        (sent,) = link.north.wait_for(own)
        assert (sent.rcpt, sent.header("To")) == (["447700900002@mms.north.example"], "447700900002")


def test_ordinary_mail_reaches_the_peer_as_an_mms_and_its_res_counts(link: Link) -> None:
    message_id = f"{new_ids()[1]}"
    mail = (
        f"From: Anna <{OURS}@mms.gw.example>\r\nTo: {THEIRS}@mms.gw.example\r\nSubject: hello\r\nMessage-ID: <{message_id}>\r\n"
        "Date: Thu, 12 Nov 2026 02:30:01 +0200\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\nX-Priority: 1\r\n\r\nHello.\r\n"
    )
    rcpt = (f"{THEIRS}@mms.gw.example", "+491511000002@mms.gw.example")
    told = link.gateway.send(mail.encode(), source=LOCAL, mail_from=f"{OURS}@mms.gw.example", rcpt=rcpt)
    assert told.code == 250, told
    (sent,) = link.north.wait_for(message_id)
    pdu = read_message(sent.content)
    assert (pdu.errors, pdu.type, pdu.get("message_id"), pdu.get("priority")) == ((), "MM4_forward.REQ", message_id, "High")
    assert sent.content.endswith(b"\r\n\r\nHello.\r\n")
    (inside,) = link.mmsc.wait_for(message_id)
    assert (inside.rcpt, read_message(inside.content).type) == (["01511000002@mmsc.gw.example"], "MM4_forward.REQ")
    answer = (
        f"X-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: MM4_forward.RES\r\nX-Mms-Transaction-ID: {pdu.get('transaction_id')}\r\n"
        f"X-Mms-Message-ID: {message_id}\r\nX-Mms-Request-Status-Code: Ok\r\n\r\n"
    )
    told = link.gateway.send(answer.encode(), source=NORTH, mail_from="system@mms.north.example", rcpt=("system-user@mms.gw.example",))
    assert told.code == 250, told
    assert ("answered", THEIRS) in state(link, message_id)


def test_an_mms_to_an_e_mail_address_goes_beyond_and_its_bounce_comes_home(link: Link) -> None:
    ids = new_ids("mms.gw.example")
    message = forward_req(sender=OURS, to="ann@office.example", ids=ids, system="mmsc@mms.gw.example").replace(
        b"X-Mms-Priority: Normal", b"X-Mms-Priority: High").replace(b"ann@office.example/TYPE=PLMN", b"ann@office.example")  # fmt: skip
    rcpt = ("ann@office.example", "gone@office.example")
    told = link.gateway.send(message, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt)
    assert told.code == 250, told
    mail = wait_for(lambda: next((m for m in link.beyond.mails if m.rcpt == ["ann@office.example"]), None), "mail beyond")
    assert (mail.mail_from, mail.header("From")) == (f"{OURS}@mms.gw.example", f"{OURS}@mail.gw.example")
    assert b"x-mms-" not in mail.content.lower()
    assert mail.header("Importance") == "High"
    assert mail.content.split(b"\r\n\r\n", 1)[1] == message.split(b"\r\n\r\n", 1)[1]
    wanted = [("accepted", "ann@office.example"), ("bounced", "gone@office.example")]
    wait_for(lambda: sorted(state(link, ids[1])) == wanted, "both outcomes")

"""Delivery status notifications as Postfix and others write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mm4.postfix.dsn import Recipient, Report, parse_plain, parse_report

TOKEN = "0123456789abcdef0123456789abcdef"

TOP = """\
Received: by gw.mms.example.test (Postfix)\tid 4XyZ12; Mon, 1 Jan 2024 00:00:00 +0000 (UTC)
From: MAILER-DAEMON@gw.mms.example.test (Mail Delivery System)
To: +447700900101/TYPE=PLMN@mms.example.test
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="B1"

This is a MIME-encapsulated message.

--B1
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

I'm sorry to have to inform you that your message could not be delivered.

"""
STATUS = f"""\
--B1
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; gw.mms.example.test
Original-Envelope-Id: {TOKEN}
X-Postfix-Queue-ID: 4XyZ11

Final-Recipient: rfc822;
 +447700900102/TYPE=PLMN@peer.test.via-tyntec.mm4.invalid
Original-Recipient: rfc822;+447700900102/TYPE=PLMN@peer.test
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.peer.test
Diagnostic-Code: smtp; 550 5.1.1 <+447700900102/TYPE=PLMN@peer.test>:
    unknown subscriber

Final-Recipient: rfc822; +447700900103/TYPE=PLMN@peer.test.VIA-P1.mm4.invalid
Action: Delayed (sorry)
Status: 4.4.1 (no answer)

"""
RETURNED = """\
--B1
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers

X-Mms-Message-Type: MM4_forward.REQ
X-Mms-Transaction-ID: "T-1"
X-MMS-Message-Id: "m-1@mms.example.test"
Subject: =?utf-8?Q?x?=

--B1--
"""

EXPECTED = Report(
    envelope_id=TOKEN,
    recipients=(
        Recipient(
            "+447700900102/TYPE=PLMN@peer.test",
            "+447700900102/TYPE=PLMN@peer.test",
            "failed",
            "5.1.1",
            "smtp; 550 5.1.1 <+447700900102/TYPE=PLMN@peer.test>: unknown subscriber",
        ),
        Recipient("", "+447700900103/TYPE=PLMN@peer.test", "delayed", "4.4.1", ""),
    ),
    message_id="m-1@mms.example.test",
    transaction_id="T-1",
    type="MM4_forward.REQ",
)


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def test_several_recipients_in_one_report_without_our_suffix() -> None:
    assert parse_report(crlf(TOP + STATUS + RETURNED)) == EXPECTED


def test_bare_line_feeds_do_as_well() -> None:
    assert parse_report((TOP + STATUS + RETURNED).encode()) == EXPECTED


def test_the_whole_message_returned() -> None:
    returned = RETURNED.replace("text/rfc822-headers", "message/rfc822").replace("\n--B1--", "\nbody\n\n--B1--")
    assert parse_report(crlf(TOP + STATUS + returned)) == EXPECTED


def test_an_internationalized_report() -> None:
    status = STATUS.replace("message/delivery-status", "message/global-delivery-status").replace(
        "unknown subscriber", "unbekannt: Grün"
    )
    returned = RETURNED.replace("text/rfc822-headers", "message/global-headers")
    report = parse_report(crlf(TOP + status + returned))
    assert report is not None
    assert report.envelope_id == TOKEN
    assert [r.action for r in report.recipients] == ["failed", "delayed"]
    assert report.recipients[0].diagnostic.endswith("Grün")
    assert (report.message_id, report.transaction_id) == ("m-1@mms.example.test", "T-1")


def test_a_report_without_envelope_id_and_without_returned_headers() -> None:
    status = STATUS.replace(f"Original-Envelope-Id: {TOKEN}\n", "")
    report = parse_report(crlf(TOP + status + "--B1--\n"))
    assert report is not None
    assert (report.envelope_id, report.message_id, report.transaction_id) == (None, None, None)
    assert len(report.recipients) == 2


def test_a_plus_in_an_address_is_no_xtext() -> None:
    # "+44" read as xtext would be "D": the address would lose its country code without an error.
    report = parse_report(crlf(TOP + STATUS + RETURNED))
    assert report is not None
    assert report.recipients[0].original_recipient.startswith("+44")


@pytest.mark.parametrize(
    "mail",
    [
        b"",
        b"\xff\x00\r\n\r\n",
        b"Subject: hello\r\n\r\ntext\r\n",
        crlf(TOP.replace("multipart/report", "multipart/mixed") + STATUS + RETURNED),
        crlf(TOP.replace("delivery-status", "disposition-notification") + STATUS + RETURNED),
        crlf(TOP + RETURNED),
        crlf(TOP.partition("--B1")[0]),
    ],
)
def test_what_is_no_report_is_none(mail: bytes) -> None:
    assert parse_report(mail) is None


def test_a_report_cut_anywhere_is_read_or_refused_without_an_exception() -> None:
    mail = crlf(TOP + STATUS + RETURNED)
    for end in range(0, len(mail), 7):
        parse_report(mail[:end])


@given(st.binary(max_size=400))
@example(b"Content-Type: multipart/report; boundary*0*=xx''%ff\r\n\r\n")
@example(b"Content-Type: multipart/report; report-type*=bogus'x'%80; boundary=b\r\n\r\n--b\r\n")
def test_no_bytes_raise(data: bytes) -> None:
    parse_report(data)


@given(st.data())
def test_no_damaged_report_raises(data: st.DataObject) -> None:
    mail = bytearray(crlf(TOP + STATUS + RETURNED))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(mail) - 1))
        mail[at : at + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=30))
    report = parse_report(bytes(mail))
    assert report is None or isinstance(report, Report)


def test_deep_nesting_does_not_raise() -> None:
    head = b"".join(b"Content-Type: multipart/report; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(2000))
    parse_report(head + b"Content-Type: message/delivery-status\r\n\r\nAction: failed\r\n")


def test_a_plain_bounce_is_its_words_and_the_ids_of_the_copy() -> None:
    data = b"Subject: failure notice\n\nNo such\n mailbox.\n\n--- copy:\nX-MMS-Transaction-Id: \"T-1\"\nX-Mms-MM1-Message-Type: MM4_Forward.RES\n"
    assert parse_plain(data) == Report(
        None, (), transaction_id="T-1", type="MM4_forward.RES", text="No such mailbox. --- copy:"
    )


@pytest.mark.parametrize(
    "data", [b"", b"Subject: x\n\nHello\n", b"X-Mms-Transaction-ID: T-1\n\nX-Mms-Transaction-ID: T-1\n", b"\xff" * 900]
)
def test_what_returns_no_pdu_is_no_plain_bounce(data: bytes) -> None:
    assert parse_plain(data) is None


@given(st.binary())
def test_no_bytes_make_the_plain_reader_fail(data: bytes) -> None:
    found = parse_plain(b"\r\n\r\n" + data + b"\nX-Mms-Transaction-ID:" + data)
    assert found is not None

"""The verdict: the outcome table row by row, answers and where they go, RES that come in."""

from __future__ import annotations

import email
from typing import Any

import pytest

import mm4.postfix.session as session_module
from fake import CONFIG, NOW, QUEUE_ID, TOKEN, Gateway, Headers, Seen, req
from mm4.gateway.edits import Edit
from mm4.gateway.names import strip_via
from mm4.gateway.outcomes import REPLIES
from mm4.gateway.verdict import Action, Verdict
from mm4.protocol.dialect import builtin
from mm4.protocol.headers import MAX_HEADERS
from mm4.protocol.transaction import Direction, State

RESPONDER = (f"{TOKEN}@responder.mm4.invalid", "NOTIFY=NEVER")
CORRUPT, DENIED = "Error-message-format-corrupt", "Error-service-denied"
UNSUPPORTED, UNRESOLVED = "Error-unsupported-message", "Error-sending-address-unresolved"
NOT_FOUND = "Error-message-not-found"
MODES = {"respond": "north", "reject": "hub", "monitor": "watched"}


def arrive(client: str = "north", lines: Headers | None = None, *, sender: str | None = None, **change: Any) -> Seen:
    """A REQ for one of our numbers from a side; originator system and sender lie in its domain."""
    gateway = change.pop("gateway", None) or Gateway()
    domain = {"tyntec": "mm4.tyntec.example", "local": "mms.gw.example"}.get(client, f"mms.{client}.example")
    if lines is None:
        change = {
            "Sender": f"+447700900002/TYPE=PLMN@{domain}",
            "X_Mms_Originator_System": f"PostMaster@{domain}",
            **change,
        }
        lines = req(**change)
    path = f"<+447700900002/TYPE=PLMN@{domain}>" if sender is None else sender
    return gateway.peer(client).mail(path).rcpt().headers(lines).end()


def outward(*, rcpt: str = "<+447700900101/TYPE=PLMN@mms.gw.example>", **change: Any) -> Seen:
    """A REQ from the local side to a peer's number."""
    lines = req(From="+491511000001/TYPE=PLMN", To="+447700900101/TYPE=PLMN", Sender=None, **change)
    return Gateway().peer("local").mail("<+491511000001/TYPE=PLMN@mms.gw.example>").rcpt(rcpt).headers(lines).end()


def res(answer_text: bytes) -> email.message.Message:
    return email.message_from_bytes(answer_text)


# -- the outcome table: what is wrong, which status a RES carries, which SMTP reply stands in for it

Row = tuple[dict[str, str | None], Headers, str, int, str]
"""Lines changed, lines added, request status, SMTP code and enhanced code."""

HOPS: Headers = [("X-Mms-Previously-sent-by", b"%d, +491511000001/TYPE=PLMN@MMS.gw.example" % i) for i in (0, 1)]
REPORT_REQ: dict[str, str | None] = {"X_Mms_Message_Type": "MM4_read_reply_report.REQ", "X_Mms_Read_Status": "Read"}
VIOLATIONS: dict[str, Row] = {
    "transaction id missing": ({"X_Mms_Transaction_ID": None}, [], CORRUPT, 554, "5.6.0"),
    "message id missing": ({"X_Mms_Message_ID": None}, [], CORRUPT, 554, "5.6.0"),
    "version missing": ({"X_Mms_3GPP_MMS_Version": None}, [], CORRUPT, 554, "5.6.0"),
    "type missing": ({"X_Mms_Message_Type": None}, [], CORRUPT, 554, "5.6.0"),
    "recipients missing": ({"To": None}, [], CORRUPT, 554, "5.6.0"),
    "sender missing": ({"From": None}, [], CORRUPT, 554, "5.6.0"),
    "date missing": ({"Date": None}, [], CORRUPT, 554, "5.6.0"),
    "content type missing": ({"Content_Type": None}, [], CORRUPT, 554, "5.6.0"),
    "value unreadable": ({"X_Mms_Forward_Counter": "once"}, [], CORRUPT, 554, "5.6.0"),
    "id unreadable": ({"X_Mms_Message_ID": "\x07"}, [], CORRUPT, 554, "5.6.0"),
    "two values under one name": ({}, [("x-mms-message-ID", b'"m-2"')], CORRUPT, 554, "5.6.0"),
    "too many headers": ({}, [("X-Junk", b"a")] * MAX_HEADERS, CORRUPT, 554, "5.6.0"),
    "type unknown": ({"X_Mms_Message_Type": "MM4_capability_negotiation.REQ"}, [], UNSUPPORTED, 554, "5.6.1"),
    "report about an unknown message": (REPORT_REQ, [], NOT_FOUND, 550, "5.1.0"),
    "from is no address": ({"From": "<>"}, [], UNRESOLVED, 553, "5.1.7"),
    "forward counter over the limit": ({"X_Mms_Forward_Counter": "11"}, [], DENIED, 550, "5.7.1"),
    "own domain at two indexes": ({}, HOPS, DENIED, 550, "5.7.1"),
    "too many hops": ({}, [("Received", b"from a by b")] * 31, DENIED, 550, "5.7.1"),
}


def broken(name: str, client: str, ack: str | None) -> Seen:
    change, more, *_ = VIOLATIONS[name]
    lines = req(
        Sender=f"+447700900002/TYPE=PLMN@mms.{client}.example",
        X_Mms_Originator_System=f"PostMaster@mms.{client}.example",
        X_Mms_Ack_Request=ack,
        **change,
    )
    sender = f"<+447700900002/TYPE=PLMN@mms.{client}.example>"
    return Gateway().peer(client).mail(sender).rcpt().headers([*lines, *more]).end()


TABLE = sorted(VIOLATIONS)


@pytest.mark.parametrize("name", TABLE)
def test_respond_answers_with_the_status_and_delivers_nothing(name: str) -> None:
    status = VIOLATIONS[name][2]
    seen = broken(name, MODES["respond"], "Yes")
    verdict = seen.verdict
    assert (verdict.action, verdict.status, str(verdict.reply)) == (Action.ACCEPT, status, "250 2.0.0 Ok")
    assert verdict.deleted == ("<+491511000001/TYPE=PLMN@mms.gw.example>",)
    assert verdict.added == (RESPONDER,)
    assert verdict.edits == ()
    (answer,) = verdict.answers
    written = res(answer.message)
    kind = "MM4_read_reply_report.RES" if name == "report about an unknown message" else "MM4_forward.RES"
    assert (answer.type, answer.status, written["X-Mms-Message-Type"]) == (kind, status, kind)
    assert written["X-Mms-Request-Status-Code"] == status
    assert written["X-Mms-Status-Text"]
    assert strip_via(answer.rcpt_to) == "PostMaster@mms.north.example"
    (kept,) = seen.gateway.ledger.messages
    assert kept.answer == answer
    assert {t.state for t in kept.transactions} == {State.REFUSED}


@pytest.mark.parametrize("name", TABLE)
def test_respond_without_a_request_for_an_ack_is_an_smtp_error(name: str) -> None:
    *_, status, code, enhanced = VIOLATIONS[name]
    refused(broken(name, MODES["respond"], "No"), status, code, enhanced)


@pytest.mark.parametrize("ack", ["Yes", "No", None])
@pytest.mark.parametrize("name", TABLE)
def test_reject_is_always_an_smtp_error(name: str, ack: str | None) -> None:
    *_, status, code, enhanced = VIOLATIONS[name]
    refused(broken(name, MODES["reject"], ack), status, code, enhanced)


def refused(seen: Seen, status: str | None, code: int, enhanced: str) -> None:
    verdict = seen.verdict
    assert (verdict.action, verdict.status) == (Action.REJECT, status)
    assert (verdict.reply.code, verdict.reply.enhanced) == (code, enhanced)
    assert (verdict.answers, verdict.record, verdict.added, verdict.deleted, verdict.edits) == ((), None, (), (), ())
    assert seen.gateway.ledger.messages == []
    assert verdict.reason, "the log has the reason"
    assert verdict.reason not in verdict.reply.text, "the peer has a generic text"


@pytest.mark.parametrize("name", TABLE)
def test_monitor_delivers_answers_ok_and_logs_what_it_was(name: str) -> None:
    status = VIOLATIONS[name][2]
    verdict = broken(name, MODES["monitor"], "Yes").verdict
    assert (verdict.action, verdict.status) == (Action.ACCEPT, status)
    assert verdict.reason
    assert verdict.reason.startswith("monitor: ")
    assert verdict.added == (("+491511000001@mmsc.gw.example", "NOTIFY=FAILURE"), RESPONDER)
    assert [a.status for a in verdict.answers] == ["Ok"]


def test_every_status_that_we_send_is_in_this_table() -> None:
    # Content and size are judged before the headers are seen.
    assert {status for _, _, status, _, _ in VIOLATIONS.values()} == set(REPLIES) - {"Error-content-not-accepted"}
    assert set(REPLIES) <= set(builtin("3gpp").statuses)


@pytest.mark.parametrize(("client", "dialect"), [("north", "3gpp"), ("tyntec", "tyntec")])
def test_every_mandatory_field_is_demanded_of_a_peer(client: str, dialect: str) -> None:
    tables = builtin(dialect)
    for row in tables.pdus["MM4_forward.REQ"]:
        if row.presence != "mandatory":
            continue
        header = tables.fields[row.field].header
        domain = "mm4.tyntec.example" if client == "tyntec" else "mms.north.example"
        lines = [
            (n, v)
            for n, v in req(tyntec=client == "tyntec", X_Mms_Originator_System=f"PostMaster@{domain}")
            if n.lower() != header.lower()
        ]
        verdict = arrive(client, lines).verdict
        assert (verdict.status, len(verdict.answers)) == (CORRUPT, 1), header
        assert verdict.reason
        assert header in verdict.reason or row.field == "message_type"


def test_an_ack_request_of_more_than_a_milter_sees_is_corrupt() -> None:
    refused(arrive(X_Mms_Ack_Request="Yes, " + "x" * 60_000), CORRUPT, 554, "5.6.0")


def test_ordinary_mail_is_refused() -> None:
    lines: Headers = [("From", b"ann@mms.north.example"), ("To", b"joe@gw.example"), ("Subject", b"hello")]
    for client in ("north", "hub", "watched", "local"):
        verdict = arrive(client, lines).verdict
        assert (verdict.action, verdict.reply.code, verdict.answers) == (Action.REJECT, 554, ())


def test_a_req_for_nobody_but_the_system_is_refused() -> None:
    verdict = Gateway().peer("north").mail().rcpt("<system-user@mms.gw.example>").headers(req()).end().verdict
    assert (verdict.action, verdict.reply.code) == (Action.REJECT, 550)


# -- what is let through


def test_a_good_req_goes_on_is_recorded_and_is_answered() -> None:
    seen = arrive()
    verdict = seen.verdict
    assert (verdict.action, verdict.status, verdict.reason) == (Action.ACCEPT, "Ok", None)
    assert verdict.direction is Direction.IN
    assert verdict.mail_from == f"{TOKEN}@mms.gw.example"
    assert verdict.mail_from_parameters == f"RET=HDRS ENVID={TOKEN}"
    assert verdict.deleted == ("<+491511000001/TYPE=PLMN@mms.gw.example>",)
    assert verdict.added == (("+491511000001@mmsc.gw.example", "NOTIFY=FAILURE"), RESPONDER)
    (kept,) = seen.gateway.ledger.messages
    assert (kept.token, kept.peer, kept.queue_id, kept.host, kept.recorded_at) == (TOKEN, "north", QUEUE_ID, "gw", NOW)
    (transaction,) = kept.transactions
    assert (transaction.transaction_id, transaction.message_id) == ("t-1@mms.north.example", "m-1@mms.north.example")
    assert (transaction.originator, transaction.recipient) == ("+447700900002", "+491511000001")
    assert (transaction.state, transaction.ack_requested) == (State.RECORDED, True)


def test_the_res_is_exact() -> None:
    (answer,) = arrive(X_Mms_Transaction_ID='"t \\"1"', X_Mms_Message_ID="m-1").verdict.answers
    assert answer.mail_from == "system-user@mms.gw.example"
    assert answer.rcpt_to == "PostMaster@mms.north.example.via-north.mm4.invalid"
    assert answer.message == (
        b"X-Mms-3GPP-MMS-Version: 5.5.0\r\n"
        b"X-Mms-Message-Type: MM4_forward.RES\r\n"
        b'X-Mms-Transaction-ID: "t \\"1"\r\n'
        b"X-Mms-Message-ID: m-1\r\n"
        b"X-Mms-Request-Status-Code: Ok\r\n"
        b"From: system-user@mms.gw.example\r\n"
        b"To: PostMaster@mms.north.example\r\n"
        b"Date: Sun, 22 Nov 2026 10:00:00 +0000\r\n"
        b"Content-Type: text/plain; charset=us-ascii\r\n"
        b"Message-ID: <e998419bcc4286e09fc4175f9a4a308a@mms.gw.example>\r\n"
        b"MIME-Version: 1.0\r\n\r\n"
    )
    assert TOKEN.encode() not in answer.message, "the token stays inside"


def test_the_res_to_a_peer_of_the_other_dialect_has_its_names() -> None:
    lines = req(tyntec=True, X_Mms_Originator_System="PostMaster@mm4.tyntec.example")
    (answer,) = arrive("tyntec", lines).verdict.answers
    assert answer.message.startswith(b"X-Mms-MMS-Version: 5.5.0\r\nX-Mms-MM1-Message-Type: MM4_Forward.RES\r\n")


def test_the_sender_of_an_answer_may_be_null() -> None:
    gateway = Gateway(CONFIG.replace("    max_size: 1MB\n", "    mail_from: null\n"))
    (answer,) = arrive(gateway=gateway).verdict.answers
    assert answer.mail_from == ""


@pytest.mark.parametrize("ack", ["No", "no", None, "", "Perhaps", "0"])
def test_who_asks_for_no_ack_gets_none_and_is_recorded(ack: str | None) -> None:
    seen = arrive(X_Mms_Ack_Request=ack)
    assert seen.verdict.answers == ()
    assert seen.verdict.edits == ()
    assert seen.verdict.added[-1] == RESPONDER
    (kept,) = seen.gateway.ledger.messages
    assert (kept.answer, kept.transactions[0].ack_requested) == (None, False)


def test_a_machine_without_a_sender_is_not_answered() -> None:
    assert arrive(X_Mms_Message_Class="Auto", sender="<>").verdict.answers == ()
    assert len(arrive(X_Mms_Message_Class="Auto").verdict.answers) == 1
    assert len(arrive(sender="<>").verdict.answers) == 1
    wrong = arrive(X_Mms_Message_Class="Auto", sender="", X_Mms_Forward_Counter="11").verdict
    assert (wrong.action, wrong.reply.code, wrong.answers) == (Action.REJECT, 550, ())


def test_once_home_is_no_loop() -> None:
    once = [(b"0", b"mms.gw.example"), (b"1", b"mms.north.example"), (b"2", b"mms.north.example")]
    lines = [*req(), *(("X-Mms-Previously-sent-by", i + b", +491511000001/TYPE=PLMN@" + d) for i, d in once)]
    assert arrive("north", lines).verdict.status == "Ok"
    again = [*lines, ("X-Mms-Previously-sent-by", b"3, system-user@mms.gw.example")]
    assert arrive("north", again).verdict.status == DENIED
    # The same hop said twice is one hop.
    same = [*lines, ("X-Mms-Previously-sent-by", b"0, system-user@mms.gw.example")]
    assert arrive("north", same).verdict.status == "Ok"


@pytest.mark.parametrize(("count", "status"), [(30, "Ok"), (31, DENIED)])
def test_thirty_hops_are_enough(count: int, status: str) -> None:
    assert arrive("north", [("Received", b"x")] * count + req()).verdict.status == status


@pytest.mark.parametrize(("counter", "status"), [("0", "Ok"), ("10", "Ok"), ("11", DENIED), ("999999999", DENIED)])
def test_ten_forwards_are_enough(counter: str, status: str) -> None:
    assert arrive(X_Mms_Forward_Counter=counter).verdict.status == status


# -- where an answer goes


@pytest.mark.parametrize(
    ("system", "sender", "mail_from", "to"),
    [
        ("root@mms.north.example", "admin@mms.north.example", "<x@mms.north.example>", "root@mms.north.example"),
        ("PostMaster@MMS.north.EXAMPLE", None, "<>", "PostMaster@MMS.north.EXAMPLE"),
        ("root@mms.north-two.example", None, "<>", "root@mms.north-two.example"),
        ("The MMSC <mmsc@mms.north.example>", None, "<>", "mmsc@mms.north.example"),
        ("+447700900002@mms.north.example", None, "<>", "+447700900002@mms.north.example"),
        (None, "+4477@mms.north.example", "<x@mms.north.example>", "x@mms.north.example"),
        (None, "+447700900003@mms.north.example", "<x@mms.north.example>", "+447700900003@mms.north.example"),
        (None, "+447700900003/TYPE=PLMN", "<x@mms.north.example>", "x@mms.north.example"),
        (None, "+447700900003@elsewhere.example", "<x@mms.north.example>", "x@mms.north.example"),
        (None, None, "<x@mms.north.example>", "x@mms.north.example"),
        ("PostMaster", None, "<x@mms.north.example>", "x@mms.north.example"),
        ("system=a;party=b", None, "<x@mms.north.example>", "x@mms.north.example"),
        ("", None, "<x@mms.north.example>", "x@mms.north.example"),
        (None, None, "<x@elsewhere.example>", None),
        (None, None, "<>", None),
        (None, None, "", None),
        ("PostMaster@elsewhere.example", "+1234567@mms.north.example", "<x@mms.north.example>", None),
        ("PostMaster@sub.mms.north.example", None, "<x@mms.north.example>", None),
        ("PostMaster@mms.gw.example", None, "<x@mms.north.example>", None),
        ("-x@mms.north.example", None, "<>", None),
    ],
)  # fmt: skip
def test_who_is_answered(system: str | None, sender: str | None, mail_from: str, to: str | None) -> None:
    seen = arrive(X_Mms_Originator_System=system, Sender=sender, sender=mail_from)
    if to is None:
        refused(seen, DENIED, 550, "5.7.1")
    else:
        (answer,) = seen.verdict.answers
        assert strip_via(answer.rcpt_to) == to
        assert res(answer.message)["To"] == to


@pytest.mark.parametrize(
    ("path", "to"),
    [
        ("<x(\xe4)@mms.north.example>", "x@mms.north.example"),
        ('<"a b"@mms.north.example>', '"a b"@mms.north.example'),
        ("<+44 7700 900002@mms.north.example>", "+447700900002/TYPE=PLMN@mms.north.example"),
    ],
)
def test_an_envelope_sender_of_odd_spelling_is_answered_in_a_plain_one(path: str, to: str) -> None:
    (answer,) = arrive(X_Mms_Originator_System=None, Sender=None, sender=path).verdict.answers
    assert strip_via(answer.rcpt_to) == to


def test_what_is_remembered_is_bounded() -> None:
    kept = arrive(X_Mms_Message_Type=b"MM4_\xff\x00" + b"x" * 50_000).gateway.ledger.messages[0]
    assert len(kept.type) == 200
    assert kept.type.isprintable()
    (arrival,) = answered(X_Mms_Status_Text="x" * 50_000).gateway.ledger.arrivals
    assert arrival[5] == "x" * 500


def test_the_configured_system_is_the_last_resort() -> None:
    lines = req(tyntec=True, X_Mms_Originator_System=None, Sender=None)
    (answer,) = arrive("tyntec", lines, sender="<+447700900002@elsewhere.example>").verdict.answers
    assert strip_via(answer.rcpt_to) == "system@mm4.tyntec.example"


def test_nothing_is_sent_outside_the_peers_domains_for_a_violation_either() -> None:
    seen = arrive(X_Mms_Originator_System="PostMaster@elsewhere.example", X_Mms_Message_ID=None)
    refused(seen, CORRUPT, 550, "5.7.1")


def test_monitor_delivers_what_it_cannot_answer() -> None:
    verdict = arrive("watched", X_Mms_Originator_System="PostMaster@elsewhere.example").verdict
    assert (verdict.action, verdict.answers) == (Action.ACCEPT, ())
    assert verdict.added[0] == ("+491511000001@mmsc.gw.example", "NOTIFY=FAILURE")


@pytest.mark.parametrize(
    ("transaction_id", "message_id", "echoed"),
    [
        ('"t-1"', "m-1", ('"t-1"', "m-1")),
        ("t\xe4", '"m-1"', (None, '"m-1"')),
        (None, '"  m  "', (None, '"  m  "')),
        ("t-1", "", ("t-1", None)),
        ("x" * 900, "m", ("x" * 900, "m")),
        ("x" * 901, "m", (None, "m")),
    ],
)
def test_ids_are_echoed_as_they_stood_or_not_at_all(
    transaction_id: str | None, message_id: str, echoed: tuple[str | None, str | None]
) -> None:
    (answer,) = arrive(X_Mms_Transaction_ID=transaction_id, X_Mms_Message_ID=message_id).verdict.answers
    written = res(answer.message)
    assert (written["X-Mms-Transaction-ID"], written["X-Mms-Message-ID"]) == echoed


def test_the_reason_in_a_res_is_one_printable_line() -> None:
    (answer,) = arrive(X_Mms_Forward_Counter=b"\xff\x00\t=?utf-8?q?a?=" + b"x" * 500).verdict.answers
    text = res(answer.message)["X-Mms-Status-Text"]
    assert answer.message.isascii()
    assert len(answer.message) < 1500
    assert "X-Mms-Forward-Counter" in str(email.header.make_header(email.header.decode_header(text)))


SHAPES: dict[str, list[tuple[str, str]]] = {
    "bare-ids": [
        ("Date", "Sun, 22 Nov 2026 10:00:00 +0000"), ("From", "system-user@mms.gw.example"),
        ("To", "PostMaster@mms.north.example"), ("Subject", "MM4_forward.RES"),
        ("Content-Type", "text/plain; charset=us-ascii"), ("X-Mms-Message-Type", "MM4_forward.RES"),
        ("X-Mms-Originator-System", "system-user@mms.gw.example"), ("X-Mms-3GPP-MMS-Version", "5.5.0"),
        ("X-Mms-Request-Recipients", "+491511000001"), ("X-Mms-Transaction-Id", '"t-1@mms.north.example"'),
        ("X-Mms-Message-Id", '"m-1@mms.north.example"'), ("X-Mms-Message-Class", "Personal"),
        ("X-Mms-Request-Status-Code", "Ok"), ("Message-ID", ""), ("MIME-Version", "1.0"),
    ],
    "minimal-res": [
        ("From", "system-user@mms.gw.example"), ("X-Mms-3GPP-MMS-Version", "5.5.0"),
        ("X-Mms-Transaction-ID", '"t-1@mms.north.example"'), ("X-Mms-Message-Type", "MM4_forward.RES"),
        ("X-Mms-Message-ID", '"m-1@mms.north.example"'), ("X-Mms-Request-Status-Code", "Ok"),
        ("Sender", "system-user@mms.gw.example"), ("To", "PostMaster@mms.north.example"), ("Message-ID", ""),
    ],
    "mbuni": [
        ("X-Mms-3GPP-MMS-Version", "5.5.0"), ("X-Mms-Transaction-ID", '"t-1@mms.north.example"'),
        ("X-Mms-Message-Type", "MM4_forward.RES"), ("X-Mms-Message-ID", '"m-1@mms.north.example"'),
        ("X-Mms-Request-Status-Code", "Ok"), ("Sender", "system-user@mms.gw.example"),
        ("To", "PostMaster@mms.north.example"), ("Message-ID", ""),
    ],
}  # fmt: skip
"""What each shape looks like when we write it; ids echoed as they stood."""


@pytest.mark.parametrize("dialect", SHAPES)
def test_a_res_has_the_lines_of_its_dialect_in_their_order(dialect: str) -> None:
    config = CONFIG.replace("    max_size: 1MB\n", f"    max_size: 1MB\n    dialect: {dialect}\n", 1)
    (answer,) = arrive(gateway=Gateway(config)).verdict.answers
    found = [(name, "" if name == "Message-ID" else value) for name, value in res(answer.message).items()]
    assert found == SHAPES[dialect]


def test_a_res_names_every_recipient_that_it_speaks_for() -> None:
    config = CONFIG.replace("    max_size: 1MB\n", "    max_size: 1MB\n    dialect: bare-ids\n", 1)
    numbers = ("+491511000001", "+491511000002")
    opened = Gateway(config).peer("north").mail().rcpt(*(f"<{n}/TYPE=PLMN@mms.gw.example>" for n in numbers))
    (answer,) = opened.headers(req()).end().verdict.answers
    assert res(answer.message)["X-Mms-Request-Recipients"].split() == ["+491511000001,", "+491511000002"]


# -- RES that come in


def answer_lines(**change: Any) -> Headers:
    base = {"X_Mms_Message_Type": "MM4_forward.RES", "X_Mms_Request_Status_Code": "Ok", "X_Mms_Status_Text": "fine"}
    return req(**{**base, "To": "system-user@mms.gw.example", "X_Mms_Ack_Request": None, **change})


def answered(client: str = "north", lines: Headers | None = None, **change: Any) -> Seen:
    opened = Gateway().peer(client).mail("<>").rcpt("<system-user@mms.gw.example>")
    return opened.headers(lines if lines is not None else answer_lines(**change)).end()


def test_a_res_is_correlated_and_ends_here() -> None:
    seen = answered()
    assert (seen.verdict.action, seen.verdict.status, seen.verdict.answers) == (Action.DISCARD, "Ok", ())
    assert seen.gateway.ledger.messages == []
    ((peer, kind, transaction, message, status, text, at, queue_id, host, recipients),) = seen.gateway.ledger.arrivals
    assert recipients == ()
    assert (peer, kind) == ("north", "MM4_forward.RES")
    assert (transaction, message) == ("t-1@mms.north.example", "m-1@mms.north.example")
    assert (status, text, at, queue_id, host) == ("Ok", "fine", NOW, QUEUE_ID, "gw")


def test_a_res_says_of_whom_it_speaks() -> None:
    seen = answered(X_Mms_Request_Recipients="+447700900101, 447700900102/TYPE=PLMN")
    assert seen.gateway.ledger.arrivals[0][-1] == ("+447700900101", "+447700900102")


def test_a_res_that_asks_for_an_ack_is_not_answered() -> None:
    assert answered(X_Mms_Ack_Request="Yes").verdict.answers == ()


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"X_Mms_Request_Status_Code": None}, CORRUPT, 554),
        ({"X_Mms_Request_Status_Code": "Error-nonsense"}, CORRUPT, 554),
        ({"X_Mms_Transaction_ID": None}, CORRUPT, 554),
        ({"X_Mms_Message_Type": "MM4_frobnicate.RES", "X_Mms_Ack_Request": "Yes"}, UNSUPPORTED, 554),
    ],
)
def test_a_broken_res_is_an_smtp_error_and_never_answered(change: dict[str, Any], status: str, code: int) -> None:
    verdict = answered(**change).verdict
    assert (verdict.action, verdict.status, verdict.reply.code, verdict.answers) == (Action.REJECT, status, code, ())
    watched = answered("watched", **change).verdict
    assert (watched.action, watched.answers, watched.arrival) == (Action.DISCARD, (), None)
    assert watched.reason


@pytest.mark.parametrize(
    ("change", "message_id"),
    [
        ({"X_Mms_Message_ID": None}, None),
        ({"X_Mms_Message_ID": '""'}, None),
        ({"X_Mms_3GPP_MMS_Version": None}, "m-1@mms.north.example"),
        ({"X_Mms_3GPP_MMS_Version": "five"}, "m-1@mms.north.example"),
    ],
)
def test_a_res_that_names_its_transaction_and_a_status_is_taken(change: dict[str, Any], message_id: str | None) -> None:
    """One open-source MMSC's errors carry no message id: refused, they would bounce and the REQ stay unanswered."""
    seen = answered(**change)
    assert (seen.verdict.action, seen.verdict.status) == (Action.DISCARD, "Ok")
    assert seen.verdict.reason, "the log says what is wrong with it"
    assert seen.gateway.ledger.arrivals[0][2:4] == ("t-1@mms.north.example", message_id)


def test_a_res_from_the_local_side_ends_here() -> None:
    seen = answered("local")
    assert (seen.verdict.action, seen.gateway.ledger.arrivals) == (Action.DISCARD, [])


# -- bounces

REPORT: Headers = [("From", b"MAILER-DAEMON@mms.north.example"), ("Content-Type", b"multipart/report;\n report-type=x")]
HOME = "<+491511000001/TYPE=PLMN@mms.gw.example>"


def bounce(client: str = "north", sender: str = "<>", rcpt: str = HOME, lines: Headers = REPORT) -> Verdict:
    return Gateway().peer(client).mail(sender).rcpt(rcpt).headers(lines).end().verdict


@pytest.mark.parametrize("sender", ["<>", ""])
@pytest.mark.parametrize(
    "rcpt", [HOME, f"<{TOKEN}@mms.gw.example>", "<system-user@MMS.gw.example>", "<+447700900009@mms.gw.example>"]
)
def test_a_bounce_is_let_through_as_it_is(sender: str, rcpt: str) -> None:
    for client in ("north", "local"):
        verdict = bounce(client, sender, rcpt)
        assert (verdict.action, verdict.reason) == (Action.ACCEPT, "bounce")
        assert (verdict.deleted, verdict.added) == ((), ())
        assert (verdict.record, verdict.mail_from) == (None, None)
        assert verdict.edits == (Edit("add", "X-Mm4-Side", value=f"{client} {QUEUE_ID}"),)


def test_nobody_else_says_whose_a_bounce_is() -> None:
    forged = ("X-MM4-side", b"tyntec 4XyZ1BCDz9")
    seen = Gateway().peer("north").mail("<>").rcpt(HOME).headers([forged, *REPORT, forged, forged]).end()
    assert [value for name, value in seen.edited() if name.lower() == "x-mm4-side"] == [f"north {QUEUE_ID}".encode()]


def test_what_only_looks_like_a_bounce_is_judged_as_any_mail() -> None:
    assert bounce(sender="<x@mms.north.example>", rcpt="<system-user@mms.gw.example>").action is Action.REJECT
    assert bounce(lines=[("Content-Type", b"multipart/mixed")]).reason == "bounce"  # some have a form of their own
    assert bounce(rcpt="<+491511000001@mms.north.example>").action is Action.REJECT
    with_mm4 = bounce(lines=[*req(), ("X-Other", b"1")])
    assert with_mm4.reason != "bounce"


# -- from the local side


def test_a_local_req_goes_to_the_peer_of_its_number() -> None:
    seen = outward()
    verdict = seen.verdict
    assert (verdict.action, verdict.status, verdict.answers) == (Action.ACCEPT, "Ok", ())
    assert verdict.direction is Direction.OUT
    assert verdict.mail_from == "+491511000001/TYPE=PLMN@mms.gw.example"
    assert verdict.mail_from_parameters == f"RET=HDRS ENVID={TOKEN}"
    assert verdict.added == (
        ("+447700900101/TYPE=PLMN@mms.north.example.via-north.mm4.invalid", "NOTIFY=FAILURE"),
        RESPONDER,
    )
    (kept,) = seen.gateway.ledger.messages
    assert (kept.peer, kept.direction, kept.transactions[0].ack_requested) == ("north", Direction.OUT, True)


def test_a_local_req_to_a_served_number_goes_inward() -> None:
    verdict = outward(rcpt="<+491511000002@mms.gw.example>").verdict
    assert verdict.added == (("+491511000002@mmsc.gw.example", "NOTIFY=FAILURE"), RESPONDER)
    assert verdict.mail_from == f"{TOKEN}@mms.gw.example"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"X_Mms_Forward_Counter": "once"}, "X-Mms-Forward-Counter: found 'once'; expected a whole number"),
        ({"X_Mms_Message_Type": None}, "no message type"),
        ({"X_Mms_Message_Type": "m-send-req"}, "'m-send-req' is no MM4 message type"),
        ({"X_Mms_Message_ID": "\x07"}, "expected an id of printable US-ASCII characters"),
    ],
)
def test_the_local_side_is_told_what_is_wrong(change: dict[str, Any], text: str) -> None:
    verdict = outward(**change).verdict
    assert (verdict.action, verdict.answers) == (Action.REJECT, ())
    assert text in verdict.reply.text
    assert len(verdict.reply.text) <= 200
    assert verdict.reply.text.isascii()


# -- faults


@pytest.mark.parametrize("fault", [ValueError("x"), KeyError("y"), RecursionError(), AssertionError(), MemoryError()])
def test_a_fault_in_the_decision_is_temporary(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    def fail(*_: object) -> Verdict:
        raise fault

    monkeypatch.setattr(session_module, "decide", fail)
    seen = arrive()
    assert (seen.verdict.action, str(seen.reply)) == (Action.TEMPFAIL, "451 4.3.0 Local error, try again later")
    assert seen.gateway.ledger.messages == []
    assert seen.gateway.runtime.messages == 0

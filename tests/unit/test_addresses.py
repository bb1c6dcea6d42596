"""How subscribers are written: templates for envelope and headers, and senders who hide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fake import CONFIG, NOW, TOKEN, Gateway, Headers, Ledger, Seen, req
from mm4.gateway.configfile import parse_config
from mm4.gateway.forms import ANONYMOUS
from mm4.gateway.matching import NoLookups
from mm4.gateway.names import public_name, strip_via
from mm4.gateway.notices import disposition_of, notice_of
from mm4.gateway.routes import ReachRoute
from mm4.gateway.routing import Router
from mm4.gateway.template import DeliverTo, HeaderForm, RecipientForm, SenderForm, fill
from mm4.gateway.verdict import Action
from mm4.lookup.reach import Reached
from mm4.protocol.address import operator_of, parse_address
from mm4.protocol.headers import Header
from mm4.protocol.reader import read
from mm4.protocol.transaction import Direction, Original, State

NUMBER, CODE = parse_address("+491511000001"), parse_address("12345")
DOMAIN, OPERATOR = "mms.north.example", ("262", "01")


@pytest.mark.parametrize(("template", "number", "code"), [
    ("{number}/TYPE=PLMN@{domain}", "+491511000001/TYPE=PLMN@mms.north.example", "12345/TYPE=PLMN@mms.north.example"),
    ("{digits}@{domain}", "491511000001@mms.north.example", "12345@mms.north.example"),
    ("{national}/TYPE=PLMN@{domain}", "01511000001/TYPE=PLMN@mms.north.example", "12345/TYPE=PLMN@mms.north.example"),
    ("{number}@mms.mnc{mnc}.mcc{mcc}.gprs", "+491511000001@mms.mnc001.mcc262.gprs", "12345@mms.mnc001.mcc262.gprs"),
    ("mms-{digits}@hub.example", "mms-491511000001@hub.example", "mms-12345@hub.example"),
    ("{number}", "+491511000001", "12345"),
])  # fmt: skip
def test_what_a_template_writes(template: str, number: str, code: str) -> None:
    assert fill(template, NUMBER, domain=DOMAIN, operator=OPERATOR) == number
    assert fill(template, CODE, domain=DOMAIN, operator=OPERATOR) == code


def test_a_template_that_needs_an_unknown_operator_writes_nothing() -> None:
    assert fill("{number}@mms.mnc{mnc}.mcc{mcc}.gprs", NUMBER, domain=DOMAIN) is None


@pytest.mark.parametrize(("kind", "template", "what"), [
    (RecipientForm, "{nummer}@{domain}", "{nummer} is no name; there are {number}, {digits}"),
    (RecipientForm, "{domain}@{domain}", "needs {number}, {digits} or {national} before the @"),
    (RecipientForm, "{number}/TYPE=PLMN", "needs a domain"),
    (RecipientForm, "{number} x@{domain}", "holds a character that no address has here"),
    (RecipientForm, "{number@{domain}", "holds a character that no address has here"),
    (RecipientForm, "{number}@x{number}.example", "a number stands before the @"),
    (RecipientForm, "{number}@mm4.invalid", "own name space"),
    (RecipientForm, "{number}@nodots", "is no domain name"),
    (SenderForm, "{number}@mms.other.example", "has to end in @{domain}"),
    (SenderForm, "{national}@{domain}", "find home by the E.164 number"),
    (HeaderForm, "{number}@mms.mcc{mcc}.example", "a header names many operators' numbers"),
    (HeaderForm, "TYPE=PLMN", "needs {number}, {digits} or {national}"),
    (DeliverTo, "{number}@{domain}", "only the number differs on the local side"),
    (DeliverTo, "all@mmsc.example.net", "needs {number}, {digits} or {national}"),
])  # fmt: skip
def test_what_no_template_may_be_is_said_with_the_cure(kind: object, template: str, what: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(template)
    assert what in str(refused.value)


@given(st.sampled_from(["+49151", "+4477009", "+336", "+1555"]), st.integers(100000, 999999),
       st.sampled_from(["{number}/TYPE=PLMN@{domain}", "{digits}/TYPE=PLMN@{domain}", "{number}@{domain}"]))  # fmt: skip
def test_what_a_template_writes_reads_back_as_the_same_number(prefix: str, rest: int, template: str) -> None:
    number = parse_address(f"{prefix}{rest}")
    written = fill(template, number, domain=DOMAIN)
    assert written is not None
    assert parse_address(written).number == number.number


@pytest.mark.parametrize(("number", "region"), [
    ("+491511000001", "DE"), ("+447700900101", "GB"), ("+33600000001", "FR"), ("+12025550123", "US"),
])  # fmt: skip
def test_a_national_number_reads_back_in_its_region(number: str, region: str) -> None:
    written = fill("{national}/TYPE=PLMN@{domain}", parse_address(number), domain=DOMAIN)
    assert written is not None
    assert parse_address(written, region).number == number


@pytest.mark.parametrize(("domain", "operator"), [
    ("mms.mnc001.mcc262.gprs", ("262", "001")), ("MMS.MNC01.MCC262.gprs", ("262", "001")),
    ("mms.mnc410.mcc310.3gppnetwork.org", ("310", "410")), ("mnc001.mcc262.gprs.", ("262", "001")),
    ("mms.north.example", None), ("mms.mnc001.mcc262.example", None), ("xmnc001.mcc262.gprs", None), (None, None),
])  # fmt: skip
def test_the_operator_in_a_domain(domain: str | None, operator: tuple[str, str] | None) -> None:
    assert operator_of(domain) == operator


# -- towards a peer


def config(peer: str = "", local: str = "") -> str:
    """north with further keys, our side with further keys."""
    text = CONFIG.replace("    domains: [mms.north.example, mms.north-two.example]\n",
                          "    domains: [mms.north.example, mms.north-two.example]\n" + peer)  # fmt: skip
    return text.replace("  region: DE\n", "  region: DE\n" + local)


def outward(text: str, rcpt: str = "+447700900101/TYPE=PLMN@mms.gw.example", sender: str = "+491511000001", **change: str) -> Seen:
    lines = req(**{"From": f"{sender}/TYPE=PLMN", "Sender": f"{sender}/TYPE=PLMN@mms.gw.example",
                   "To": "+447700900101/TYPE=PLMN, \"Uncle\" <0151 1000002>, a@b.example", **change})  # fmt: skip
    return Gateway(text).peer("local").mail(f"<{sender}/TYPE=PLMN@mms.gw.example>").rcpt(f"<{rcpt}>").headers(lines).end()


def values(seen: Seen, name: str) -> list[bytes]:
    return [v for n, v in seen.edited() if n.lower() == name.lower()]


def test_a_peer_gets_envelope_and_headers_as_it_wants_them() -> None:
    seen = outward(config('    addresses: {recipient: "{digits}@{domain}", sender: "{digits}@{domain}", header: "{digits}@{domain}"}\n'))
    assert seen.verdict.mail_from == "491511000001@mms.gw.example"
    assert [strip_via(a) for a, _ in seen.verdict.added][:1] == ["447700900101@mms.north.example"]
    assert values(seen, "From") == values(seen, "Sender") == [b"491511000001@mms.north.example"]
    assert values(seen, "To") == [b"447700900101@mms.north.example,\n 491511000002@mms.north.example,\n a@b.example"]


def test_without_templates_all_stays_as_it_was() -> None:
    seen = outward(CONFIG, To="+447700900101/TYPE=PLMN")
    assert values(seen, "To") == [b"+447700900101/TYPE=PLMN"]
    assert values(seen, "From") == [b"+491511000001/TYPE=PLMN"]
    assert seen.verdict.mail_from == "+491511000001/TYPE=PLMN@mms.gw.example"


def test_a_short_code_writes_by_the_same_templates() -> None:
    text = config('    addresses: {sender: "{digits}@{domain}", header: "{number}"}\n')
    seen = outward(text, sender="12345")
    assert (seen.verdict.mail_from, values(seen, "From")) == ("12345@mms.gw.example", [b"12345"])


def test_the_operators_codes_come_from_the_recipients_own_domain_or_the_recipient_is_put_off() -> None:
    text = config('    addresses: {recipient: "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}\n').replace("mms.north.example,", "mms.north.example, mms.mnc015.mcc234.gprs,")
    session = Gateway(text).peer("local").mail("<+491511000001@mms.gw.example>")
    assert str(session.rcpt("<+447700900101@mms.gw.example>").reply) == "451 4.3.5 Its operator is not known, and the peer's addresses need it"
    assert session.rcpt("<+447700900101@mms.mnc015.mcc234.gprs>").reply.code == 250
    assert [strip_via(r.destination.becomes or "") for r in session.session.recipients if r.destination] == ["+447700900101@mms.mnc015.mcc234.gprs"]


def test_a_peers_national_numbers_are_read_in_its_region() -> None:
    text = config("    region: DE\n")
    for given_text, code in ((CONFIG, 550), (text, 250)):
        assert Gateway(given_text).peer("north").mail().rcpt("<01511 000001/TYPE=PLMN@mms.gw.example>").reply.code == code


# -- towards our own side


def inward(text: str, **change: str) -> Seen:
    return Gateway(text).peer("north").mail().rcpt().headers(req(**change)).end()


def test_our_side_gets_addresses_in_its_form_and_its_own_envelope() -> None:
    text = config(local='  addresses: {header: "{number}@{domain}"}\n').replace('"{number}@mmsc.gw.example"', '"{national}@mmsc.gw.example"')
    seen = inward(text)
    assert values(seen, "From") == values(seen, "Sender") == [b"+447700900002@mms.gw.example"]
    assert values(seen, "To") == [b"+491511000001@mms.gw.example"]
    assert seen.verdict.added[0][0] == "01511000001@mmsc.gw.example"


@pytest.mark.parametrize(("local", "visibility", "answers", "shown"), [
    ("", "Hide", "gateway", False), ("", "Show", "gateway", True), ("  hide: pass\n", "Hide", "gateway", True),
    ("", "Hide", "mmsc", True), ('  addresses: {header: "{digits}"}\n', "Hide", "gateway", False),
])  # fmt: skip
def test_who_hides_is_not_shown_to_our_side(local: str, visibility: str, answers: str, shown: bool) -> None:
    seen = inward(config(f"    answers: {answers}\n", local), X_Mms_Sender_Visibility=visibility, Reply_To="+447700900002@mms.north.example",
                  X_Mms_Sender_Address="+447700900002", Return_Path="<+447700900002@mms.north.example>")  # fmt: skip
    assert seen.verdict.action is Action.ACCEPT
    told = b"\n".join(value for name, value in seen.edited() if not name.lower().startswith("x-mms-previously"))
    assert (b"7700900002" in told) is shown
    if not shown:
        assert values(seen, "From") == [ANONYMOUS.encode()]
    (record,) = seen.gateway.ledger.messages
    assert record.transactions[0].originator == "+447700900002"


def test_between_operators_the_sender_of_a_hidden_message_travels() -> None:
    seen = outward(CONFIG, X_Mms_Sender_Visibility="Hide", To="+447700900101/TYPE=PLMN")
    assert (values(seen, "From"), values(seen, "X-Mms-Sender-Visibility")) == ([b"+491511000001/TYPE=PLMN"], [b"Hide"])


def came_in() -> Ledger:
    """A store that knows a message of north's, which asked for reports."""
    ledger = Ledger()
    ledger.history.append(Original(
        Direction.IN, "north", "north", "t-1", "m-1@mms.north.example", "+447700900002", "+491511000001", State.ACCEPTED, True, True, NOW,
    ))  # fmt: skip
    return ledger


REPORT: Headers = [
    ("From", b"+491511000001/TYPE=PLMN"), ("To", ANONYMOUS.encode()), ("X-Mms-3GPP-MMS-Version", b"5.5.0"),
    ("X-Mms-Message-Type", b"MM4_delivery_report.REQ"), ("X-Mms-Transaction-ID", b"t-9"), ("Date", b"Thu, 12 Nov 2026 02:28:01 +0200"),
    ("X-Mms-Message-ID", b"m-1@mms.north.example"), ("X-Mms-MM-Status-Code", b"Retrieved"),
]  # fmt: skip


@pytest.mark.parametrize(("rcpt", "sent"), [
    (f"<{ANONYMOUS}>", None), ("<+447700900002@mms.mnc015.mcc234.gprs>", "+447700900002@mms.mnc015.mcc234.gprs"),
])  # fmt: skip
def test_a_report_to_an_originator_whose_operator_nobody_knows_is_refused_and_not_lost(rcpt: str, sent: str | None) -> None:
    text = config('    addresses: {recipient: "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}\n').replace("mms.north.example,", "mms.north.example, mms.mnc015.mcc234.gprs,")
    text = text.replace('prefix: "+4477009001"', 'prefix: "+447700900"')
    seen = Gateway(text, came_in()).peer("local").mail("<>").rcpt(rcpt).headers(REPORT).end()
    if sent is None:
        assert (seen.reply.code, seen.gateway.ledger.messages) == (550, [])
        assert "no way leads to +447700900002" in (seen.verdict.reason or "")
    else:
        assert [strip_via(address) for address, _ in seen.verdict.added][:1] == [sent]


@pytest.mark.parametrize("sender", ["", "system-user@mmsc.gw.example"])
def test_a_report_to_nobody_reaches_who_hid(sender: str) -> None:
    seen = Gateway(CONFIG, came_in()).peer("local").mail(f"<{sender}>").rcpt(f"<{ANONYMOUS}>").headers(REPORT).end()
    assert seen.verdict.action is Action.ACCEPT, (seen.replies, seen.verdict.reason)
    assert strip_via(seen.verdict.added[0][0]) == "+447700900002/TYPE=PLMN@mms.north.example"
    assert values(seen, "To") == [b"+447700900002/TYPE=PLMN"]


def test_only_our_own_side_may_write_to_nobody() -> None:
    assert Gateway().peer("north").mail("<>").rcpt(f"<{ANONYMOUS}>").reply.code == 550
    assert Gateway().peer("local").mail("<+491511000001@mms.gw.example>").rcpt(f"<{ANONYMOUS}>").reply.code == 550


# -- Internet mail


BEYOND = CONFIG + 'mail: {submit: yes, next_hop: "[127.0.0.1]:2526", domain: mail.gw.example}\n'
TO_NORTH = "<+447700900101@mms.gw.example>"


def ordinary(text: str, *rcpt: str, sender: str = "+491511000001@mms.gw.example", **change: str | None) -> Seen:
    lines: dict[str, str | None] = {
        "From": "Anna <+491511000001@mms.gw.example>", "To": "+447700900101@mms.gw.example", "Subject": "hello",
        "Date": "Thu, 12 Nov 2026 02:28:01 +0200", "Message-ID": "<abc.1@phone.example>", "Content-Type": "text/plain",
    }  # fmt: skip
    lines |= {name.replace("_", "-"): value for name, value in change.items()}
    headers = [(name, value.encode("latin-1")) for name, value in lines.items() if value is not None]
    return Gateway(text).peer("local").mail(f"<{sender}>").rcpt(*(rcpt or (TO_NORTH,))).headers(headers).end()


def test_ordinary_mail_to_a_number_becomes_a_forward_req_that_the_peer_can_read() -> None:
    seen = ordinary(BEYOND)
    assert (seen.verdict.action, seen.verdict.status) == (Action.ACCEPT, "Ok"), seen.verdict.reason
    pdu = read([Header(name, value) for name, value in seen.edited()], "3gpp")
    assert (pdu.problems, pdu.type) == ((), "MM4_forward.REQ")
    assert (pdu.get("message_id"), pdu.get("subject"), pdu.ack_request) == ("abc.1@phone.example", "hello", True)
    assert values(seen, "From") == [b"+491511000001/TYPE=PLMN"]
    assert values(seen, "To") == [b"+447700900101/TYPE=PLMN"]
    (record,) = seen.gateway.ledger.messages
    (transaction,) = record.transactions
    assert (record.type, transaction.message_id, transaction.ack_requested) == ("MM4_forward.REQ", "abc.1@phone.example", True)
    assert transaction.transaction_id == pdu.get("transaction_id")


@pytest.mark.parametrize(("change", "field", "value"), [
    ({"Importance": "high"}, "priority", "High"), ({"X_Priority": "5 (Lowest)"}, "priority", "Low"),
    ({"X_Priority": "3"}, "priority", None), ({"Importance": "normal", "X_Priority": "1"}, "priority", None),
    ({"Disposition_Notification_To": "+491511000001@mms.gw.example"}, "read_reply", True),
    ({"From": "anna@office.example", "Disposition_Notification_To": "anna@office.example"}, "read_reply", None),
    ({"Message_ID": "<\xe9@phone.example>"}, "message_id", f"{public_name(TOKEN, 'message')}@mms.gw.example"),
    ({"Message_ID": None}, "message_id", f"{public_name(TOKEN, 'message')}@mms.gw.example"),
])  # fmt: skip
def test_what_ordinary_mail_says_in_mms(change: dict[str, str | None], field: str, value: object) -> None:
    pdu = read([Header(n, v) for n, v in ordinary(BEYOND, **change).edited()], "3gpp")
    assert pdu.get(field) == value


def test_ordinary_mail_to_a_number_of_ours_goes_in_as_a_forward_req() -> None:
    seen = ordinary(BEYOND, "<+491511000002@mms.gw.example>", To="+491511000002@mms.gw.example")
    pdu = read([Header(name, value) for name, value in seen.edited()], "3gpp")
    assert (pdu.problems, pdu.type, pdu.ack_request) == ((), "MM4_forward.REQ", False)
    assert seen.verdict.added[0][0] == "+491511000002@mmsc.gw.example"


@pytest.mark.parametrize("rcpt", ["<+491511000002@mms.gw.example>", TO_NORTH])
def test_ordinary_mail_of_nobody_knows_whom_becomes_no_mms(rcpt: str) -> None:
    seen = ordinary(BEYOND, rcpt, sender="ann@office.example", From=None)
    assert (str(seen.reply), seen.gateway.ledger.messages) == ("554 5.6.0 From is missing and cannot be completed", [])


@pytest.mark.parametrize(("text", "client", "sender", "code"), [
    (CONFIG, "local", "+491511000001@mms.gw.example", 554),
    (BEYOND, "north", "+447700900002/TYPE=PLMN@mms.north.example", 554),
])  # fmt: skip
def test_ordinary_mail_is_an_mms_only_from_our_side_and_where_it_may(text: str, client: str, sender: str, code: int) -> None:
    rcpt = TO_NORTH if client == "local" else "<+491511000001@mms.gw.example>"
    seen = Gateway(text).peer(client).mail(f"<{sender}>").rcpt(rcpt).headers([("From", b"a@b.example"), ("Subject", b"x")]).end()
    assert seen.reply.code == code


def test_a_bounce_is_no_ordinary_mail() -> None:
    seen = Gateway(BEYOND).peer("local").mail("<>").rcpt("<+491511000001@mms.gw.example>").headers([("From", b"MAILER-DAEMON@x.example")]).end()
    assert seen.verdict.reason == "bounce"


def beyond(text: str = BEYOND, rcpt: str = "<ann@office.example>", client: str = "local", **change: str | None) -> Seen:
    lines = req(**{"From": "+491511000001/TYPE=PLMN", "Sender": "+491511000001/TYPE=PLMN@mms.gw.example",
                   "To": "ann@office.example, +447700900101/TYPE=PLMN", "X_Mms_Priority": "High", "X_Mms_Read_Reply": "Yes",
                   "X_Mms_Message_Class": "Personal", "X_Mms_Vendor_Thing": "1", **change})  # fmt: skip
    return Gateway(text).peer(client).mail("<+491511000001@mms.gw.example>").rcpt(rcpt).headers(lines).end()


def test_an_mms_to_an_e_mail_address_becomes_internet_mail() -> None:
    seen = beyond()
    assert seen.verdict.action is Action.ACCEPT, seen.verdict.reason
    edited = seen.edited()
    assert not [name for name, _ in edited if name.lower().startswith("x-mms-")]
    assert values(seen, "From") == values(seen, "Sender") == [b"+491511000001@mail.gw.example"]
    assert values(seen, "To") == [b"ann@office.example,\n +447700900101@mail.gw.example"]
    assert values(seen, "Importance") == [b"High"]
    assert values(seen, "Disposition-Notification-To") == [b"+491511000001@mail.gw.example"]
    assert (values(seen, "MIME-Version"), len(values(seen, "Message-ID"))) == ([b"1.0"], 1)
    assert seen.verdict.mail_from == "+491511000001@mms.gw.example"
    assert seen.verdict.added[0] == ("ann@office.example.via-mail.mm4.invalid", "NOTIFY=FAILURE")
    (record,) = seen.gateway.ledger.messages
    assert (record.peer, record.direction, record.transactions[0].recipient) == ("mail", Direction.OUT, "ann@office.example")
    assert (record.transactions[0].ack_requested, record.transactions[0].due_at) == (False, None)


def test_a_domain_with_its_final_dot_is_written_without() -> None:
    assert beyond(rcpt="<ann@office.example.>").verdict.added[0][0] == "ann@office.example.via-mail.mm4.invalid"


def test_who_answers_an_mms_by_e_mail_reaches_its_sender() -> None:
    answer = {"From": "ann@office.example", "To": "+491511000001@mail.gw.example"}
    seen = ordinary(BEYOND, "<+491511000001@mail.gw.example>", sender="ann@office.example", **answer)
    assert seen.verdict.action is Action.ACCEPT, seen.reply
    assert seen.verdict.added[0][0] == "+491511000001@mmsc.gw.example"


def test_an_mmsc_that_asked_for_an_ack_can_be_told_by_res_that_e_mail_bounced() -> None:
    text = BEYOND.replace("  region: DE\n", "  region: DE\n  on_bounce: res\n")
    (message,) = beyond(text, X_Mms_Ack_Request="Yes", X_Mms_Originator_System="mmsc@mms.gw.example").gateway.ledger.messages
    router, transaction = Router(parse_config(text, "mm4.yaml")), message.transactions[0]
    found = disposition_of(message, transaction, "failed", "5.1.1", router, NOW)
    assert found is not None
    notice = notice_of(message, transaction, found, "no such user", router, NOW, "gw")
    assert notice is not None
    assert (notice.mail.type, notice.mail.rcpt_to) == ("MM4_forward.RES", "mmsc@mmsc.gw.example")
    assert b"X-Mms-Request-Recipients: ann@office.example" in notice.mail.message


def test_who_hides_does_not_write_e_mail() -> None:
    seen = beyond(X_Mms_Sender_Visibility="Hide")
    assert (seen.reply.code, seen.verdict.status) == (550, "Error-service-denied")
    assert "hides" in (seen.verdict.reason or "")


def test_a_link_that_is_only_watched_shows_nobody_who_hides() -> None:
    lines = req(To="ann@office.example", X_Mms_Sender_Visibility="Hide", Reply_To="+447700900002@mms.hub.example")
    text = BEYOND.replace("on_violation: reject", "on_violation: monitor")
    seen = Gateway(text).peer("hub").mail("<a@mms.hub.example>").rcpt("<ann@office.example>").headers(lines).end()
    assert seen.verdict.action is Action.ACCEPT, seen.verdict.reason
    assert b"7700900002" not in b"".join(value for _, value in seen.edited())


def test_the_subscribers_of_a_message_to_e_mail_too_get_theirs_as_mms() -> None:
    lines = req(From="+491511000001/TYPE=PLMN", To="ann@office.example, +447700900101/TYPE=PLMN")
    seen = Gateway(BEYOND).peer("local").mail("<+491511000001@mms.gw.example>").rcpt(TO_NORTH, "<ann@office.example>").headers(lines).end()
    assert values(seen, "X-Mms-Message-Type") == [b"MM4_forward.REQ"]
    assert [part.side for part in seen.verdict.splits] == ["mail"]


def test_a_line_of_which_not_all_was_seen_is_not_taken_out_for_the_first_of_several_sides() -> None:
    lines = [*req(From="+491511000001/TYPE=PLMN", To="ann@office.example, +447700900101/TYPE=PLMN"), ("X-Mms-Long", b"x" * 60_000)]
    client = Gateway(BEYOND).peer("local").mail("<+491511000001@mms.gw.example>")
    seen = client.rcpt("<ann@office.example>", TO_NORTH).headers(lines).end()
    assert str(seen.reply) == "554 5.6.0 X-Mms-Long is too long to be changed"
    alone = Gateway(BEYOND).peer("local").mail("<+491511000001@mms.gw.example>").rcpt("<ann@office.example>").headers(lines).end()
    assert alone.verdict.action is Action.ACCEPT


@pytest.mark.parametrize(("text", "client", "rcpt", "code"), [
    (CONFIG, "local", "<ann@office.example>", 550),
    (BEYOND, "local", "<ann@mms.north.example>", 550),
    (BEYOND, "local", "<ann@mms.gw.example>", 550),
    (BEYOND, "north", "<ann@office.example>", 550),
    (BEYOND, "hub", "<ann@office.example>", 250),
    (BEYOND, "local", "<+491511000002@mail.gw.example>", 250),
    (BEYOND, "local", "<+447700900101@mail.gw.example>", 550),
    (BEYOND, "local", "<ann@mms.north.example.>", 550),
    (BEYOND, "local", "<ann@MMS.gw.example.>", 550),
    (BEYOND, "hub", "<ann@mms.north.example.>", 550),
    (BEYOND, "local", "<ann@[192.0.2.1]>", 550),
    (BEYOND, "local", f"<ann@{'.'.join(['a' * 59] * 4)}>", 550),
])  # fmt: skip
def test_who_may_write_to_e_mail_addresses(text: str, client: str, rcpt: str, code: int) -> None:
    assert Gateway(text).peer(client).mail("<+447700900002@mms.hub.example>").rcpt(rcpt).reply.code == code


def test_the_operators_codes_come_from_a_reach_list() -> None:
    class Told(NoLookups):
        def reach(self, route: ReachRoute, number: str) -> Reached | None:
            return Reached("+4477009", "North", "234", "15", "north")

    text = config('    addresses: {recipient: "{number}@mms.mnc{mnc}.mcc{mcc}.gprs"}\n').replace('{prefix: "+4477009001", peer: north}', "{reach: north.csv, peer: north}")
    session = Gateway(text, lookups=Told()).peer("local").mail("<+491511000001@mms.gw.example>").rcpt("<+447700900101@mms.gw.example>").session
    assert [strip_via(r.destination.becomes or "") for r in session.recipients if r.destination] == ["+447700900101@mms.mnc015.mcc234.gprs"]


def test_no_report_leaves_as_internet_mail() -> None:
    ledger = Ledger()
    ledger.history.append(Original(
        Direction.OUT, "hub", "local", "t-1", "m-1@mms.gw.example", "anna@office.example", "+34600000001", State.ANSWERED, True, True, NOW,
    ))  # fmt: skip
    lines = [
        ("From", b"+34600000001/TYPE=PLMN"), ("To", b"anna@office.example"), ("X-Mms-3GPP-MMS-Version", b"5.5.0"),
        ("X-Mms-Message-Type", b"MM4_delivery_report.REQ"), ("X-Mms-Transaction-ID", b"t-9"), ("Date", b"Thu, 12 Nov 2026 02:28:01 +0200"),
        ("X-Mms-Message-ID", b"m-1@mms.gw.example"), ("X-Mms-MM-Status-Code", b"Retrieved"),
    ]  # fmt: skip
    seen = Gateway(BEYOND, ledger).peer("hub").mail("<system@mms.hub.example>").rcpt("<anna@office.example>").headers(lines).end()
    assert (seen.verdict.action, seen.reply.code) == (Action.REJECT, 550), seen.verdict.reason

"""Whom the gateway tells of a delivery, and in which words; nobody else, and nothing about its own notices."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fake import CONFIG, NOW, TOKEN
from mm4.gateway.configfile import parse_config
from mm4.gateway.notices import Notice, disposition_of, notice_of, notice_token
from mm4.gateway.routing import Router
from mm4.protocol.reader import read_message
from mm4.protocol.transaction import Direction, Message, State, Transaction

OURS, THEIRS = "+491511000001", "+447700900101"


def router_of(*changes: tuple[str, str]) -> Router:
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return Router(parse_config(text, "mm4.yaml"))


def outward(*, asked: bool = True, state: State = State.WAITING, **change: object) -> Message:
    transaction = Transaction("t-1", "m-1", OURS, THEIRS, state, ack_requested=True, delivery_report=asked)
    message = Message(TOKEN, Direction.OUT, "north", "MM4_forward.REQ", "Q", "gw", NOW, (transaction,), source="local")
    return replace(message, **change)  # type: ignore[arg-type]


def inward(peer: str = "north", *, asked: bool = True, source: str | None = None) -> Message:
    transaction = Transaction("t-1", "m-1", THEIRS, OURS, State.ANSWERED, ack_requested=True, delivery_report=asked)
    return Message(TOKEN, Direction.IN, peer, "MM4_forward.REQ", "Q", "gw", NOW, (transaction,), source=source or peer)


def told(
    message: Message, router: Router, action: str = "failed", status: str = "5.1.1", detail: str = "smtp; 550 no"
) -> Notice | None:
    (transaction,) = message.transactions
    found = disposition_of(message, transaction, action, status, router, NOW)
    return None if found is None else notice_of(message, transaction, found, detail, router, NOW, "gw")


def header(notice: Notice, name: str) -> str | None:
    lines = notice.mail.message.decode().split("\r\n")
    return next((line.partition(": ")[2] for line in lines if line.lower().startswith(name.lower() + ": ")), None)


ON_DELIVERY = ("    max_size: 1MB\n", "    max_size: 1MB\n    delivery_report: on_delivery\n")
RES = ("  region: DE\n", "  region: DE\n  on_bounce: res\n")
OFF = ("  region: DE\n", "  region: DE\n  on_bounce: off\n")


def test_our_originator_gets_a_report_from_the_recipient() -> None:
    notice = told(outward(), router_of())
    assert notice is not None
    pdu = read_message(notice.mail.message)
    assert pdu.valid, pdu.problems
    assert (pdu.type, pdu.get("mm_status"), pdu.get("message_id")) == ("MM4_delivery_report.REQ", "Rejected", "m-1")
    assert header(notice, "From") == f"{THEIRS}/TYPE=PLMN@mms.north.example"
    assert header(notice, "To") == f"{OURS}/TYPE=PLMN@mms.gw.example"
    assert header(notice, "X-Mms-Ack-Request") == "No"
    assert header(notice, "X-Mms-Status-Text") == "smtp; 550 no"
    assert notice.mail.rcpt_to == f"{OURS}@mmsc.gw.example"
    assert notice.mail.mail_from == f"{notice.record.token}@mms.gw.example"
    (kept,) = notice.record.transactions
    assert (notice.record.direction, notice.record.peer, notice.record.type) == (Direction.IN, "north", pdu.type)
    # Our own word, which no peer has said.
    assert notice.record.source == "local"
    assert (kept.originator, kept.recipient, kept.report, kept.ack_requested) == (THEIRS, OURS, "Rejected", False)
    assert kept.transaction_id == pdu.get("transaction_id") != "t-1"


def test_the_same_cause_is_the_same_notice_and_another_recipient_another() -> None:
    message, router = outward(), router_of()
    (transaction,) = message.transactions
    failed = disposition_of(message, transaction, "failed", "5.1.1", router, NOW)
    late = disposition_of(message, transaction, "failed", "4.4.7", router, NOW)
    relayed = disposition_of(message, transaction, "relayed", "2.0.0", router, NOW)
    assert failed is not None
    assert late is not None
    assert relayed is not None
    token = notice_token(message, transaction, failed)
    assert token == notice_token(message, transaction, late)
    assert token != notice_token(message, transaction, relayed)
    assert token != notice_token(message, replace(transaction, recipient=OURS), failed)
    assert TOKEN not in token


@pytest.mark.parametrize(
    "message",
    [
        outward(asked=False),
        outward(state=State.REFUSED),
        outward(state=State.DUPLICATE),
        outward(type="MM4_delivery_report.REQ"),
        outward(type="MM4_read_reply_report.REQ"),
        outward(source="gone"),
        replace(outward(), transactions=(replace(outward().transactions[0], originator=THEIRS),)),
        replace(outward(), transactions=(replace(outward().transactions[0], originator="system"),)),
        inward(),
        inward("tyntec"),
    ],
)
def test_nobody_else_is_told(message: Message) -> None:
    assert told(message, router_of()) is None


def test_success_is_not_told_to_our_side_and_off_is_off() -> None:
    assert told(outward(), router_of(), "relayed", "2.0.0") is None
    assert told(outward(), router_of(OFF)) is None
    assert told(outward(), router_of(), "delayed", "4.4.1") is None


def test_an_mmsc_that_asked_for_an_ack_gets_an_error_res() -> None:
    router = router_of(RES)
    notice = told(outward(asked=False, reply_to="mmsc@mmsc.gw.example"), router, status="5.7.1")
    assert notice is not None
    pdu = read_message(notice.mail.message)
    assert pdu.valid, pdu.problems
    assert (pdu.type, pdu.get("status_code")) == ("MM4_forward.RES", "Error-service-denied")
    assert (pdu.get("transaction_id"), pdu.get("message_id")) == ("t-1", "m-1")
    assert (notice.mail.rcpt_to, notice.record.type) == ("mmsc@mmsc.gw.example", "MM4_forward.RES")
    assert told(outward(), router) is None, "no ack was asked for"
    assert told(outward(state=State.ANSWERED, reply_to="mmsc@mmsc.gw.example"), router) is None, "it had its RES"


@pytest.mark.parametrize(("action", "status", "mm_status"), [
    ("failed", "5.1.1", "Rejected"), ("failed", "4.4.7", "Expired"), ("relayed", "2.0.0", "Indeterminate"),
])  # fmt: skip
def test_a_peer_that_asked_is_told(action: str, status: str, mm_status: str) -> None:
    notice = told(inward(), router_of(ON_DELIVERY), action, status)
    assert notice is not None
    pdu = read_message(notice.mail.message)
    assert pdu.valid, pdu.problems
    assert pdu.get("mm_status") == mm_status
    assert header(notice, "X-Mms-Ack-Request") == "Yes"
    assert header(notice, "X-Mms-Status-Text") is None, "what our MMSC says is not for the peer"
    assert notice.mail.rcpt_to == f"{THEIRS}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid"
    assert notice.mail.mail_from == "system-user@mms.gw.example"
    (kept,) = notice.record.transactions
    assert (notice.record.direction, notice.record.peer, kept.report) == (Direction.OUT, "north", mm_status)
    assert kept.due_at == NOW + timedelta(minutes=10)


def test_a_peer_that_did_not_ask_is_not_told() -> None:
    assert told(inward(asked=False), router_of(ON_DELIVERY), "relayed", "2.0.0") is None


def test_in_transit_the_peer_from_which_it_came_is_told() -> None:
    message = outward(source="north", peer="tyntec")
    notice = told(message, router_of(ON_DELIVERY))
    assert notice is not None
    assert notice.record.peer == "north"
    assert notice.mail.rcpt_to.endswith(".via-north.mm4.invalid")


def test_a_peer_with_null_sender_gets_its_report_from_nobody() -> None:
    change = ("    max_size: 1MB\n", "    max_size: 1MB\n    delivery_report: on_delivery\n    mail_from: null\n")
    notice = told(inward(), router_of(change))
    assert notice is not None
    assert notice.mail.mail_from == ""


def test_relayed_is_what_the_operator_says() -> None:
    change = ("  region: DE\n", "  region: DE\n  relayed_status: Retrieved\n")
    notice = told(inward(), router_of(ON_DELIVERY, change), "relayed", "2.0.0")
    assert notice is not None
    assert notice.mail.status == "Retrieved"


def test_what_was_given_up_after_its_expiry_is_expired() -> None:
    over = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
    notice = told(outward(expires_at=over), router_of(), status="4.4.1")
    assert notice is not None
    assert notice.mail.status == "Expired"


def test_what_a_system_said_is_one_line_of_ascii() -> None:
    notice = told(outward(), router_of(), detail="smtp; 550 nö\n  X-Evil: 1 " + "x" * 500)
    assert notice is not None
    text = header(notice, "X-Mms-Status-Text")
    assert text is not None
    assert text.startswith("smtp; 550 n? X-Evil: 1 xx")
    assert len(text) == 200

"""Reports: compared with the message they are about, acked where asked, passed on or kept, never to a foreign peer."""

from __future__ import annotations

import dataclasses
import email
import email.message
from collections.abc import Iterable
from typing import Any

import pytest

from fake import CONFIG, NOW, TOKEN, Gateway, Headers, Ledger, Seen
from mm4.gateway.configfile import dialect_files, parse_config
from mm4.gateway.names import strip_via
from mm4.gateway.reports import REPORTS
from mm4.gateway.verdict import Action
from mm4.protocol.dialect import builtin
from mm4.protocol.errors import StoreError
from mm4.protocol.transaction import Direction, Original, State

DELIVERY, READ = "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"
OURS, THEIRS = "+491511000001", "+447700900101"
DOMAINS = {
    "north": "mms.north.example", "tyntec": "mm4.tyntec.example", "hub": "mms.hub.example",
    "watched": "mms.watched.example", "local": "mms.gw.example",
}  # fmt: skip
NOT_FOUND, CORRUPT = "Error-message-not-found", "Error-message-format-corrupt"
RESPONDER = (f"{TOKEN}@responder.mm4.invalid", "NOTIFY=NEVER")


def sent(peer: str = "north", **values: Any) -> Original:
    """A message of ours that went to a peer."""
    standard: dict[str, Any] = {
        "direction": Direction.OUT, "peer": peer, "source": "local", "transaction_id": "t-1", "message_id": "m-1",
        "originator": OURS, "recipient": THEIRS, "state": State.ANSWERED, "delivery_report": True, "read_reply": True,
        "recorded_at": NOW,
    }  # fmt: skip
    return Original(**{**standard, **values})


def came(peer: str = "north", **values: Any) -> Original:
    """A message of a peer that came to us."""
    return sent(
        peer, **{"direction": Direction.IN, "source": peer, "originator": THEIRS, "recipient": OURS, **values}
    )


def lines(kind: str, *, of: str, to: str, domain: str, tyntec: bool = False, **change: str | None) -> Headers:
    """A report's header lines; keywords replace, add or (None) leave out one."""
    dialect = builtin("tyntec" if tyntec else "3gpp")
    says = {DELIVERY: ("X-Mms-MM-Status-Code", "Retrieved"), READ: ("X-Mms-Read-Status", "Read")}[kind]
    found: dict[str, str | None] = {
        "From": f"{of}/TYPE=PLMN",
        "Sender": f"system-user@{domain}",
        "To": f"{to}/TYPE=PLMN",
        "Date": "Thu, 12 Nov 2026 02:28:01 +0200",
        dialect.fields["mms_version"].header: "5.5.0",
        dialect.fields["message_type"].header: dialect.types[kind].written,
        "X-Mms-Transaction-ID": '"r-1"',
        "X-Mms-Message-ID": '"m-1"',
        "X-Mms-Ack-Request": "Yes",
        says[0]: says[1],
    }
    for key, value in change.items():
        found[key.replace("_", "-")] = value
    return [(name, value.encode("latin-1")) for name, value in found.items() if value is not None]


def gateway(*history: Original, config: str = CONFIG) -> Gateway:
    ledger = Ledger()
    ledger.history = list(history)
    return Gateway(config, ledger)


def from_peer(
    history: Iterable[Original], kind: str = DELIVERY, *, peer: str = "north", rcpt: str | None = None,
    mail_from: str | None = None, **change: str | None,
) -> Seen:  # fmt: skip
    """A report that a peer sends about a message of ours."""
    domain = DOMAINS[peer]
    content = lines(kind, of=THEIRS, to=OURS, domain=domain, tyntec=peer == "tyntec", **change)
    seen = gateway(*history).peer(peer).mail(f"<system-user@{domain}>" if mail_from is None else mail_from)
    return seen.rcpt(rcpt or f"<{OURS}/TYPE=PLMN@mms.gw.example>").headers(content).end()


def from_local(
    history: Iterable[Original], kind: str = DELIVERY, *, rcpt: str = f"<{THEIRS}/TYPE=PLMN@mms.gw.example>",
    mail_from: str = "<system-user@mms.gw.example>", config: str = CONFIG, **change: str | None,
) -> Seen:  # fmt: skip
    """A report of our MMSC about a message that came in."""
    content = lines(kind, of=OURS, to=THEIRS, domain="mmsc.gw.example", **change)
    return gateway(*history, config=config).peer("local").mail(mail_from).rcpt(rcpt).headers(content).end()


def answer(seen: Seen) -> email.message.Message:
    (only,) = seen.verdict.answers
    return email.message_from_bytes(only.message)


def values(seen: Seen) -> dict[str, str]:
    """The headers as they go out, by their names in lower case."""
    return {name.lower(): value.decode() for name, value in seen.edited()}


# -- what the table says


@pytest.mark.parametrize("kind", REPORTS)
def test_every_row_names_what_an_original_and_a_dialect_have(kind: str) -> None:
    row = REPORTS[kind]
    assert row.asked in {field.name for field in dataclasses.fields(Original)}
    assert row.says in builtin("3gpp").fields
    assert (kind, row.says) in builtin("3gpp").row_of
    assert len(row.source) > 10


# -- from a peer, about what we sent


@pytest.mark.parametrize("peer", ["north", "tyntec"])
@pytest.mark.parametrize("kind", [DELIVERY, READ])
def test_a_report_of_a_peer_goes_to_the_originator_and_is_acked(kind: str, peer: str) -> None:
    seen = from_peer([sent(peer)], kind, peer=peer)
    verdict = seen.verdict
    assert (verdict.action, verdict.status) == (Action.ACCEPT, "Ok")
    assert verdict.added == ((f"{OURS}@mmsc.gw.example", "NOTIFY=FAILURE"), RESPONDER)
    assert verdict.mail_from == f"{TOKEN}@mms.gw.example"
    assert [edit.as_json() for edit in verdict.edits] == [["change", "X-Mms-Ack-Request", 1, "No"]]
    res = answer(seen)
    names = builtin(peer if peer == "tyntec" else "3gpp")
    written = names.types[kind.replace("REQ", "RES")].written
    assert res[names.fields["message_type"].header] == written
    assert res["X-Mms-Request-Status-Code"] == "Ok"
    assert (res["X-Mms-Transaction-ID"], res["X-Mms-Message-ID"]) == ('"r-1"', '"m-1"')
    assert strip_via(verdict.answers[0].rcpt_to) == f"system-user@{DOMAINS[peer]}"
    (kept,) = seen.gateway.ledger.messages
    assert (kept.direction, kept.peer, kept.type, kept.source) == (Direction.IN, peer, kind, peer)
    (one,) = kept.transactions
    assert (one.originator, one.recipient, one.message_id, one.transaction_id) == (THEIRS, OURS, "m-1", "r-1")
    assert one.report == {DELIVERY: "Retrieved", READ: "Read"}[kind]
    assert one.state is State.RECORDED


def test_it_asks_for_what_went_to_that_peer_only() -> None:
    seen = from_peer([sent()])
    assert seen.gateway.ledger.questions == [("m-1", Direction.OUT, "north", THEIRS)]


def test_a_forward_req_asks_nothing() -> None:
    from fake import req

    seen = gateway(sent()).peer("north").mail().rcpt().headers(req()).end()
    assert seen.verdict.action is Action.ACCEPT
    assert seen.gateway.ledger.questions == []


@pytest.mark.parametrize("ack", ["No", None])
def test_no_ack_where_none_was_asked_for(ack: str | None) -> None:
    seen = from_peer([sent()], X_Mms_Ack_Request=ack)
    assert (seen.verdict.action, seen.verdict.answers) == (Action.ACCEPT, ())
    assert seen.verdict.added[-1] == RESPONDER


@pytest.mark.parametrize(
    "history",
    [[], [sent(message_id="m-2")], [sent(recipient="+447700900102")], [sent("tyntec")], [came(originator=OURS, recipient=THEIRS)]],
    ids=["nothing", "another id", "another recipient", "went to another peer", "came in"],
)
@pytest.mark.parametrize("kind", [DELIVERY, READ])
def test_a_report_about_what_nobody_knows_is_answered_so(kind: str, history: list[Original]) -> None:
    seen = from_peer(history, kind)
    assert (seen.verdict.action, seen.verdict.status) == (Action.ACCEPT, NOT_FOUND)
    assert seen.verdict.added == (RESPONDER,)
    assert answer(seen)["X-Mms-Request-Status-Code"] == NOT_FOUND
    assert answer(seen)["X-Mms-Message-ID"] == '"m-1"'
    (kept,) = seen.gateway.ledger.messages
    assert {t.state for t in kept.transactions} == {State.REFUSED}
    refused = from_peer(history, kind, X_Mms_Ack_Request="No")
    assert (refused.verdict.action, str(refused.reply)[:9]) == (Action.REJECT, "550 5.1.0")


def test_a_message_id_is_compared_without_its_quotes() -> None:
    assert from_peer([sent()], X_Mms_Message_ID="m-1").verdict.status == "Ok"
    assert from_peer([sent()], X_Mms_Message_ID="M-1").verdict.status == NOT_FOUND


def test_a_report_to_our_system_address_reaches_the_originator() -> None:
    seen = from_peer([sent()], rcpt="<system-user@mms.gw.example>")
    assert seen.verdict.added[0] == (f"{OURS}@mmsc.gw.example", "NOTIFY=FAILURE")
    assert seen.verdict.deleted == ("<system-user@mms.gw.example>",)


def test_a_report_that_names_another_subscriber_reaches_the_originator() -> None:
    seen = from_peer([sent()], rcpt="<+491511000002/TYPE=PLMN@mms.gw.example>")
    assert seen.verdict.added[0][0] == f"{OURS}@mmsc.gw.example"


def test_of_two_messages_with_one_id_the_named_originators_counts() -> None:
    history = [sent(originator="+491511000002"), sent()]
    assert from_peer(history).verdict.added[0][0] == f"{OURS}@mmsc.gw.example"
    assert from_peer(history[::-1]).verdict.added[0][0] == f"{OURS}@mmsc.gw.example"
    home = from_peer(history, rcpt="<system-user@mms.gw.example>")
    assert home.verdict.added[0][0] == f"{OURS}@mmsc.gw.example", "To names him"
    nobody = from_peer(history, rcpt="<system-user@mms.gw.example>", To="system-user@mms.gw.example")
    assert nobody.verdict.added[0][0] == "+491511000002@mmsc.gw.example", "nobody is named: the newest"


@pytest.mark.parametrize("newest", ["north", "tyntec"])
@pytest.mark.parametrize("meant", ["north", "tyntec"])
def test_of_two_peers_with_one_id_and_originator_the_one_whose_domain_is_written_counts(newest: str, meant: str) -> None:
    history = sorted([came("north"), came("tyntec")], key=lambda o: o.peer != newest)
    assert from_local(history, rcpt=f"<{THEIRS}@{DOMAINS[meant]}>").verdict.added[0][0].endswith(f".via-{meant}.mm4.invalid")
    by_to = from_local(history, rcpt="<system-user@mms.gw.example>", To=f"{THEIRS}/TYPE=PLMN@{DOMAINS[meant]}")
    assert by_to.verdict.added[0][0].endswith(f".via-{meant}.mm4.invalid")


def test_a_report_that_was_not_asked_for_is_passed_on_all_the_same() -> None:
    seen = from_peer([sent(delivery_report=False)])
    assert seen.verdict.added[0][0] == f"{OURS}@mmsc.gw.example"


@pytest.mark.parametrize(
    ("kind", "change", "status"),
    [
        (DELIVERY, {"X_Mms_Transaction_ID": None}, CORRUPT),
        (DELIVERY, {"X_Mms_Message_ID": None}, CORRUPT),
        (DELIVERY, {"X_Mms_MM_Status_Code": None}, CORRUPT),
        (DELIVERY, {"From": None}, CORRUPT),
        (DELIVERY, {"From": "<>"}, "Error-sending-address-unresolved"),
        (DELIVERY, {"Date": None}, CORRUPT),
        (READ, {"X_Mms_Read_Status": None}, CORRUPT),
        (READ, {"X_Mms_Read_Status": "Maybe"}, CORRUPT),
    ],
)
def test_a_report_that_breaks_a_rule_is_answered_so(kind: str, change: dict[str, str | None], status: str) -> None:
    seen = from_peer([sent()], kind, **change)
    assert seen.verdict.status == status
    assert answer(seen)["X-Mms-Request-Status-Code"] == status
    assert seen.verdict.added == (RESPONDER,)


def test_an_unknown_mm_status_is_unrecognised() -> None:
    seen = from_peer([sent()], X_Mms_MM_Status_Code="Evaporated")
    assert seen.verdict.status == "Ok"
    assert seen.gateway.ledger.messages[0].transactions[0].report == "Unrecognised"


def test_monitor_passes_a_report_about_nothing_on_and_says_so() -> None:
    seen = from_peer([], peer="watched", mail_from="<system-user@mms.watched.example>")
    assert (seen.verdict.action, seen.verdict.status) == (Action.ACCEPT, NOT_FOUND)
    assert seen.verdict.added[0][0] == f"{OURS}@mmsc.gw.example"
    assert (seen.verdict.reason or "").startswith("monitor: ")


def test_a_store_that_cannot_be_asked_is_a_4xx() -> None:
    fault = StoreError("store is away")
    seen = Gateway(ledger=Ledger(fault)).peer("north").mail("<system-user@mms.north.example>").rcpt()
    seen.headers(lines(DELIVERY, of=THEIRS, to=OURS, domain="mms.north.example")).end()
    assert (seen.verdict.action, seen.reply.code) == (Action.TEMPFAIL, 451)


# -- from the local side, about what came in


@pytest.mark.parametrize("peer", ["north", "tyntec"])
@pytest.mark.parametrize("kind", [DELIVERY, READ])
def test_a_report_of_ours_goes_to_the_peer_that_the_message_came_from(kind: str, peer: str) -> None:
    """The number's route leads to tyntec; the message came from `peer`."""
    number = "+447700900201"
    seen = from_local([came(peer, originator=number)], kind, rcpt=f"<{number}@mms.gw.example>", To=f"{number}/TYPE=PLMN")
    verdict = seen.verdict
    assert verdict.action is Action.ACCEPT
    (becomes, notify), responder = verdict.added
    assert becomes == f"{number}/TYPE=PLMN@{DOMAINS[peer]}.via-{peer}.mm4.invalid"
    assert (notify, responder) == ("NOTIFY=FAILURE", RESPONDER)
    assert verdict.mail_from == "system-user@mms.gw.example"
    assert verdict.mail_from_parameters == f"RET=HDRS ENVID={TOKEN}"
    assert verdict.answers == ()
    out = values(seen)
    dialect = builtin("tyntec" if peer == "tyntec" else "3gpp")
    assert out[dialect.fields["message_type"].header.lower()] == dialect.types[kind].written
    assert out[dialect.fields["mms_version"].header.lower()] == "5.5.0"
    assert out["x-mms-message-id"] == '"m-1"', "as the local side wrote it"
    assert out["x-mms-transaction-id"] == '"r-1"'
    assert out["x-mms-ack-request"] == "Yes"
    assert out["sender"] == "system-user@mms.gw.example"
    assert out["x-mms-originator-system"] == "system-user@mms.gw.example"
    assert out["from"] == f"{OURS}/TYPE=PLMN"
    assert out["to"] == f"{number}/TYPE=PLMN"
    (kept,) = seen.gateway.ledger.messages
    assert (kept.direction, kept.peer, kept.source) == (Direction.OUT, peer, "local")
    (one,) = kept.transactions
    assert (one.originator, one.recipient, one.ack_requested) == (OURS, number, True)


def test_it_asks_for_what_came_in_from_anybody() -> None:
    assert from_local([came()]).gateway.ledger.questions == [("m-1", Direction.IN, None, OURS)]


@pytest.mark.parametrize(
    "lacking", ["X_Mms_3GPP_MMS_Version", "X_Mms_Transaction_ID", "Date", "To", "Sender", "X_Mms_Ack_Request"]
)
def test_what_a_report_of_ours_lacks_is_completed(lacking: str) -> None:
    seen = from_local([came()], **{lacking: None})
    assert seen.verdict.action is Action.ACCEPT
    out = values(seen)
    assert out[lacking.replace("_", "-").lower()]
    assert out["to"] == f"{THEIRS}/TYPE=PLMN"


@pytest.mark.parametrize(("lacking", "kind"), [
    ("From", DELIVERY), ("X_Mms_Message_ID", DELIVERY), ("X_Mms_MM_Status_Code", DELIVERY), ("X_Mms_Read_Status", READ),
])  # fmt: skip
def test_what_only_its_writer_knows_is_not_made_up(lacking: str, kind: str) -> None:
    seen = from_local([came()], kind, **{lacking: None})
    assert (seen.verdict.action, seen.reply.code) == (Action.REJECT, 554)
    assert lacking.replace("_", "-") in seen.reply.text


def test_to_becomes_the_originator() -> None:
    seen = from_local([came()], To="+447700900199/TYPE=PLMN")
    assert values(seen)["to"] == f"{THEIRS}/TYPE=PLMN"


@pytest.mark.parametrize(("kind", "asked"), [(DELIVERY, "delivery_report"), (READ, "read_reply")])
def test_a_report_that_was_not_asked_for_is_kept_and_not_sent(kind: str, asked: str) -> None:
    seen = from_local([came(**{asked: False})], kind)
    assert (seen.verdict.action, seen.reply.code) == (Action.DISCARD, 250)
    assert (seen.verdict.added, seen.verdict.answers) == ((), ())
    (kept,) = seen.gateway.ledger.messages
    (one,) = kept.transactions
    assert (one.state, one.recipient, one.ack_requested) == (State.SUPPRESSED, THEIRS, False)
    assert one.report == {DELIVERY: "Retrieved", READ: "Read"}[kind]


def test_a_report_about_what_never_came_is_refused_with_the_reason() -> None:
    seen = from_local([came(message_id="m-2")])
    assert (seen.verdict.action, seen.reply.code) == (Action.REJECT, 550)
    assert "'m-1'" in seen.reply.text
    assert OURS in seen.reply.text


def test_the_originators_peer_may_have_gone_from_the_configuration() -> None:
    """The route of his number is as good as any; without one it is refused."""
    seen = from_local([came("gone")])
    assert seen.verdict.added[0][0].endswith(".via-north.mm4.invalid")


@pytest.mark.parametrize("originator", ["12345", "+3512345678", "joe@mms.north.example"])
@pytest.mark.parametrize("mail_from", ["<system-user@mms.gw.example>", "<>"])
def test_a_report_to_an_originator_without_a_route_goes_to_his_peer(originator: str, mail_from: str) -> None:
    address = originator if "@" in originator else f"{originator}/TYPE=PLMN@mms.north.example"
    seen = from_local([came(originator=originator)], rcpt=f"<{address}>", mail_from=mail_from, To=address)
    assert seen.verdict.action is Action.ACCEPT
    assert strip_via(seen.verdict.added[0][0]) == address
    assert seen.verdict.added[0][0].endswith(".via-north.mm4.invalid")


@pytest.mark.parametrize("rcpt", ["12345/TYPE=PLMN@mms.north.example", "+3512345678@mms.gw.example"])
def test_nothing_but_a_report_goes_where_no_route_leads(rcpt: str) -> None:
    """From a system it is taken at RCPT, alone, and refused at the end; those before and behind him are not lost."""
    from fake import req

    served = f"<{THEIRS}@mms.gw.example>"
    last = gateway().peer("local").mail("<system-user@mms.gw.example>").rcpt(served, f"<{rcpt}>")
    assert [reply.code for reply in last.replies[1:]] == [250, 550]
    assert last.headers(req()).end().verdict.action is Action.ACCEPT
    first = gateway().peer("local").mail("<system-user@mms.gw.example>").rcpt(f"<{rcpt}>", served)
    assert [reply.code for reply in first.replies[1:]] == [250, 452], "the other one comes again"
    first.headers(req()).end()
    assert (first.verdict.action, str(first.reply)[:9]) == (Action.REJECT, "550 5.1.1")
    person = gateway().peer("local").mail(f"<{OURS}@mms.gw.example>").rcpt(f"<{rcpt}>")
    assert person.reply.code == 550


def test_monitor_loses_nobody_either() -> None:
    from fake import req

    lines_ = req(X_Mms_Forward_Counter="11", Sender="a@mms.watched.example")
    opened = gateway().peer("watched").mail("<system-user@mms.watched.example>").rcpt("<+447700900101@mms.gw.example>")
    assert opened.reply.code == 250
    opened.headers(lines_).end()
    assert (opened.verdict.action, opened.reply.code) == (Action.REJECT, 550)


def test_a_peer_that_wants_null_senders_gets_them() -> None:
    config = CONFIG.replace('    max_size: 1MB\n', '    max_size: 1MB\n    mail_from: "null"\n')
    assert config != CONFIG
    assert from_local([came()], config=config).verdict.mail_from == ""


# -- in transit


def test_a_report_about_a_message_in_transit_goes_back_to_where_it_came_from() -> None:
    """A hub's message went through us to north; north's report goes to the hub, in the hub's own terms."""
    number = "+34600000001"
    through = sent("north", source="hub", originator=number)
    seen = from_peer([through], rcpt=f"<{number}/TYPE=PLMN@mms.gw.example>", To=f"{number}/TYPE=PLMN")
    assert seen.verdict.added[0][0] == f"{number}/TYPE=PLMN@mms.hub.example.via-hub.mm4.invalid"
    assert values(seen)["x-mms-originator-system"] == "system-user@mms.gw.example"
    assert answer(seen)["X-Mms-Request-Status-Code"] == "Ok"
    (kept,) = seen.gateway.ledger.messages
    assert (kept.direction, kept.peer, kept.source) == (Direction.OUT, "hub", "north")


def test_one_in_transit_that_was_not_asked_for_is_acked_and_kept() -> None:
    through = sent("north", source="hub", originator="+34600000001", delivery_report=False)
    seen = from_peer([through], rcpt="<+34600000001/TYPE=PLMN@mms.gw.example>")
    assert (seen.verdict.action, seen.verdict.added) == (Action.ACCEPT, (RESPONDER,))
    assert answer(seen)["X-Mms-Request-Status-Code"] == "Ok"
    assert seen.gateway.ledger.messages[0].transactions[0].state is State.SUPPRESSED


# -- what must never go round


def test_a_res_to_a_report_ends_here() -> None:
    for kind in ("MM4_delivery_report.RES", "MM4_read_reply_report.RES"):
        content = lines(DELIVERY, of=THEIRS, to=OURS, domain="mms.north.example", X_Mms_Message_Type=kind)
        content.append(("X-Mms-Request-Status-Code", b"Ok"))
        seen = gateway(sent()).peer("north").mail("<>").rcpt("<system-user@mms.gw.example>").headers(content).end()
        assert (seen.verdict.action, seen.verdict.answers) == (Action.DISCARD, ())
        assert seen.gateway.ledger.arrivals[0][1] == kind


def test_a_report_from_nobody_is_acked_but_never_one_of_class_auto() -> None:
    assert len(from_peer([sent()], mail_from="<>").verdict.answers) == 1
    assert from_peer([sent()], mail_from="<>", X_Mms_Message_Class="Auto").verdict.answers == ()


def test_a_report_about_a_report_is_about_nothing_known() -> None:
    """The store gives forward.REQs only; what it would give for the report's own id is nothing."""
    assert from_peer([], X_Mms_Message_ID='"r-1"').verdict.status == NOT_FOUND


# -- the originator, and nobody else


def test_a_report_whose_originator_is_no_longer_ours_goes_to_nobody_else() -> None:
    seen = from_peer([sent(originator="+4915120001")], rcpt=f"<{OURS}/TYPE=PLMN@mms.gw.example>")
    assert (seen.verdict.action, str(seen.reply)[:9]) == (Action.REJECT, "550 5.1.1")
    assert "+4915120001" in (seen.verdict.reason or "")


def test_an_application_of_ours_is_told_by_its_short_code() -> None:
    seen = from_peer([sent(originator="12345")], rcpt="<12345/TYPE=PLMN@mms.gw.example>")
    assert seen.verdict.added[0] == ("12345@mmsc.gw.example", "NOTIFY=FAILURE")
    assert seen.gateway.ledger.messages[0].transactions[0].recipient == "12345"


def test_a_report_about_a_message_between_two_of_ours_follows_the_same_rule() -> None:
    """Our MMSC's REQ to a number of ours went inward; so does the report, where it was asked for."""
    number = "+491511000009"
    asked = from_local([came("local", source="local", originator=number)], rcpt=f"<{number}@mms.gw.example>")
    assert asked.verdict.added[0] == (f"{number}@mmsc.gw.example", "NOTIFY=FAILURE")
    silent = from_local([came("local", source="local", originator=number, delivery_report=False)], rcpt=f"<{number}@mms.gw.example>")
    assert silent.verdict.action is Action.DISCARD
    assert silent.gateway.ledger.messages[0].transactions[0].state is State.SUPPRESSED


def test_a_right_to_stays_as_it_was_written_and_of_several_lines_one_is_left() -> None:
    written = f"Ann Example <{THEIRS}/TYPE=PLMN@mms.north.example>"
    assert values(from_local([came()], To=written))["to"] == written
    seen = from_local([came()], To="+447700900198/TYPE=PLMN", Cc="+447700900199/TYPE=PLMN")
    assert values(seen)["to"] == f"{THEIRS}/TYPE=PLMN"
    assert "cc" not in values(seen)


def test_a_request_of_the_originators_system_counts_as_one() -> None:
    """X-Mms-Originator-R/S-Delivery-Report asks for a delivery report too (TS 23.140 8.4.1)."""
    from fake import req

    lines_ = [*req(X_Mms_Delivery_Report="No"), ("X-Mms-Originator-R/S-Delivery-Report", b"Yes")]
    seen = gateway().peer("north").mail().rcpt().headers(lines_).end()
    assert seen.gateway.ledger.messages[0].transactions[0].delivery_report is True


def test_a_word_that_only_the_reporters_dialect_knows_is_written_as_the_other_peer_reads_it() -> None:
    through = sent("tyntec", source="hub", originator="+34600000001")
    config = CONFIG.replace("    dialect: tyntec\n", "    dialect: own.yaml\n")
    own = "name: own\nextends: tyntec\ntitle: own\nfields:\n  mm_status: {spellings: {Delivered: Retrieved}, source: trace}\n"
    ledger = Ledger()
    ledger.history = [through]
    parsed = parse_config(config, "mm4.yaml", {str(path): own for path in dialect_files(config, "mm4.yaml")})
    content = lines(DELIVERY, of=THEIRS, to="+34600000001", domain="mm4.tyntec.example", tyntec=True, X_Mms_MM_Status_Code="Delivered")
    opened = Gateway(parsed, ledger).peer("tyntec").mail("<system@mm4.tyntec.example>")
    seen = opened.rcpt("<+34600000001/TYPE=PLMN@mms.gw.example>").headers(content).end()
    assert seen.verdict.action is Action.ACCEPT, seen.verdict.reason
    assert values(seen)["x-mms-mm-status-code"] == "Retrieved"


@pytest.mark.parametrize(
    ("kind", "header", "word", "written"),
    [
        (DELIVERY, "X-Mms-MM-Status-Code", "retrieved", "Retrieved"), (DELIVERY, "X-Mms-MM-Status-Code", "Gone", "Gone"),
        (DELIVERY, "X-Mms-MM-Status-Code", "Unrecognized", "Unrecognised"),
        (READ, "X-Mms-Read-Status", "Deletedwithoutbeingread", "Deleted without being read"),
    ],
)  # fmt: skip
def test_what_our_side_spells_in_its_own_way_goes_out_exact(kind: str, header: str, word: str, written: str) -> None:
    """A word of no list passes as it is: the gateway makes none up."""
    seen = from_local([came()], kind, **{header.replace("-", "_"): word})
    assert values(seen)[header.lower()] == written

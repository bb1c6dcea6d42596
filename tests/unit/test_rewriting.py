"""What changes on the way: header edits inward and outward in both dialects, in an order that Postfix can follow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake import CONFIG, TOKEN, Gateway, Headers, Seen, applied, req
from mm4.gateway.edits import Edit, in_order
from mm4.gateway.names import public_name
from mm4.gateway.verdict import Action
from mm4.protocol.headers import Header
from mm4.protocol.pdu import Pdu
from mm4.protocol.reader import read

TO_NORTH = "<+447700900101/TYPE=PLMN@mms.gw.example>"
TO_TYNTEC = "<+447700900201/TYPE=PLMN@mms.gw.example>"
LOCAL = "+491511000001/TYPE=PLMN"
IDS = {name: f"{public_name(TOKEN, name)}@mms.gw.example" for name in ("transaction", "message")}


def local_req(**change: Any) -> Headers:
    """A REQ as an MMSC of ours hands it in: 3GPP names, everything there."""
    base = {"From": LOCAL, "Sender": f"{LOCAL}@mms.gw.example", "To": "+447700900201/TYPE=PLMN"}
    base["X_Mms_Originator_System"] = "mmsc@mmsc.gw.example"
    return req(**{**base, **change})


def send(lines: Headers, *rcpt: str, sender: str = f"<{LOCAL}@mms.gw.example>", config: str = CONFIG) -> Seen:
    return Gateway(config).peer("local").mail(sender).rcpt(*(rcpt or (TO_NORTH,))).headers(lines).end()


def of(lines: Headers, name: str) -> list[bytes]:
    return [value for n, value in lines if n.lower() == name.lower()]


def reread(seen: Seen, dialect: str) -> Pdu:
    """What the peer reads, by its own tables."""
    assert seen.verdict.action is Action.ACCEPT, seen.verdict.reason
    return read([Header(name, value) for name, value in seen.edited()], dialect)


# -- the order


LINES = st.lists(st.sampled_from(["To", "to", "Cc", "X-A"]), min_size=1, max_size=10)


@given(LINES, st.data())
def test_edits_in_order_do_what_each_says_of_the_message_that_was_read(names: list[str], data: st.DataObject) -> None:
    lines = [(name, b"%d" % i) for i, name in enumerate(names)]
    wanted: Headers = []
    edits: list[Edit] = []
    counts: dict[str, int] = {}
    for name, value in lines:
        key = name.lower()
        counts[key] = counts.get(key, 0) + 1
        what = data.draw(st.sampled_from(["keep", "change", "delete"]))
        if what == "keep":
            wanted.append((name, value))
        elif what == "change":
            new = f"new {value.decode()}"
            edits.append(Edit("change", name, counts[key], new))
            wanted.append((name, new.encode()))
        else:
            edits.append(Edit("delete", name, counts[key]))
    added = data.draw(st.lists(st.sampled_from(["To", "X-A", "X-B"]), max_size=3))
    edits += [Edit("add", name, 0, "added") for name in added]
    wanted += [(name, b"added") for name in added]
    shuffled = data.draw(st.permutations(edits))
    done = applied(lines, in_order(shuffled))
    kept = len(wanted) - len(added)
    assert done[:kept] == wanted[:kept]
    assert sorted(done[kept:]) == sorted(wanted[kept:])


def test_the_model_of_postfix_shifts_as_postfix_does() -> None:
    three = [("A", b"1"), ("A", b"2"), ("A", b"3")]
    forwards = [Edit("delete", "A", 1), Edit("delete", "A", 2)]
    assert applied(three, forwards) == [("A", b"2")], "seen on Postfix: the second index means another line by then"
    assert applied(three, in_order(forwards)) == [("A", b"3")]


def test_additions_keep_their_order() -> None:
    edits = [Edit("add", name, 0, "x") for name in ("B", "A", "C")]
    assert [e.header for e in in_order(edits)] == ["B", "A", "C"]


# -- inward


def inward(client: str = "north", **change: Any) -> Seen:
    domain = "mm4.tyntec.example" if client == "tyntec" else "mms.north.example"
    change = {"X_Mms_Originator_System": f"PostMaster@{domain}", **change}
    return Gateway().peer(client).mail().rcpt().headers(req(tyntec=client == "tyntec", **change)).end()


@pytest.mark.parametrize("client", ["north", "tyntec"])
def test_inward_only_the_ack_request_changes(client: str) -> None:
    seen = inward(client, To="01511 000001, joe", Subject=b"Stra\xdfe", X_Junk="x", Date="2026-11-12T02:28:01Z")
    assert seen.verdict.edits == (Edit("change", "X-Mms-Ack-Request", 1, "No"),)
    assert seen.edited() == [(n, b"No" if n == "X-Mms-Ack-Request" else v) for n, v in seen.lines]


def test_inward_the_name_is_changed_as_the_peer_wrote_it_and_every_time() -> None:
    twice: Headers = [("x-mms-ACK-request", b"Yes"), ("X-Junk", b"1"), ("X-Mms-Ack-Request", b"Yes")]
    lines = [*req(X_Mms_Ack_Request=None), *twice]
    seen = Gateway().peer("north").mail().rcpt().headers(lines).end()
    assert len(seen.verdict.answers) == 1
    assert of(seen.edited(), "X-Mms-Ack-Request") == [b"No", b"No"]


def test_inward_without_a_request_nothing_changes() -> None:
    for ack in ("No", None, "Perhaps"):
        assert inward(X_Mms_Ack_Request=ack).verdict.edits == ()


# -- outward


def test_outward_to_a_3gpp_peer_only_the_originator_system_changes() -> None:
    seen = send(local_req(To="+447700900101/TYPE=PLMN"))
    assert seen.verdict.edits == (Edit("change", "X-Mms-Originator-System", 1, "system-user@mms.gw.example"),)
    found = reread(seen, "3gpp")
    assert found.problems == ()


def test_outward_to_tyntec_names_and_type_are_tyntecs() -> None:
    seen = send(local_req(), TO_TYNTEC)
    edited = seen.edited()
    assert of(edited, "X-Mms-3GPP-MMS-Version") == of(edited, "X-Mms-Message-Type") == []
    assert of(edited, "X-Mms-MMS-Version") == [b"5.5.0"]
    assert of(edited, "X-Mms-MM1-Message-Type") == [b"MM4_Forward.REQ"]
    assert of(edited, "X-Mms-Originator-System") == [b"system-user@mms.gw.example"]
    untouched = ("Date", "From", "Sender", "To", "Content-Type", "X-Mms-Transaction-ID", "X-Mms-Message-ID")
    assert all(of(edited, name) == of(seen.lines, name) for name in untouched)
    found = reread(seen, "tyntec")
    assert (found.valid, found.problems) == (True, ())


def test_outward_hops_are_renamed_each_on_its_own() -> None:
    hops: Headers = [
        ("X-Mms-Previously-sent-by", b"0, General Failure\n\t<+447700900007/TYPE=PLMN>"),
        ("X-Mms-Previously-sent-by", b"1, +447700900008/TYPE=PLMN"),
        ("X-Mms-Previously-sent-date-and-time", b"0, Fri, 01 Apr 2005 06:02:03 GMT"),
    ]
    seen = send([*local_req(), *hops], TO_TYNTEC)
    edited = seen.edited()
    # The letter case of this name is no other name.
    assert of(edited, "X-Mms-Previously-Sent-By") == [hops[0][1], hops[1][1]]
    assert of(edited, "X-Mms-Previously-sent-date-and-time") == []
    assert of(edited, "Previously-sent-date-and-time") == [b"0, Fri, 01 Apr 2005 06:02:03 GMT"]
    forwarded = [*local_req(To="+447700900101"), ("X-Mms-Forwarded-By", b"+447700900007/TYPE=PLMN\n\t(x)")]
    # A hop that came without its index gets the one that it was read with (RFC 4356 2.1.3.2).
    assert of(send(forwarded).edited(), "X-Mms-Previously-sent-by") == [b"0, +447700900007/TYPE=PLMN"]
    bare = [*local_req(To="+447700900101"), ("X-Mms-Previously-sent-by", b"+447700900007/TYPE=PLMN")]
    assert of(send(bare).edited(), "X-Mms-Previously-sent-by") == [b"0, +447700900007/TYPE=PLMN"]


# Two names for one thing: an MMSC that writes MM1's version beside the real one, or both names of both dialects.
PAIRS: Headers = [("X-Mms-MMS-Version", b"1.0"), ("X-Mms-MM1-Message-Type", b"m-send-req")]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("rcpt", "dialect"), [(TO_NORTH, "3gpp"), (TO_TYNTEC, "tyntec")])
def test_outward_a_peer_finds_one_value_where_two_names_stood(first: bool, rcpt: str, dialect: str) -> None:
    lines = [*PAIRS, *local_req()] if first else [*local_req(), *PAIRS]
    seen = send(lines, rcpt)
    found = reread(seen, dialect)
    assert found.valid, found.problems
    assert (found.type, found.get("mms_version")) == ("MM4_forward.REQ", "5.5.0")
    if dialect == "tyntec":
        assert of(seen.edited(), "X-Mms-MMS-Version") == [b"5.5.0"]
        assert of(seen.edited(), "X-Mms-MM1-Message-Type") == [b"MM4_Forward.REQ"]


def test_outward_a_line_that_stands_twice_is_changed_twice() -> None:
    twice: Headers = [("x-mms-ack-request", b"No"), ("X-Mms-Originator-System", b"mmsc@mmsc.gw.example")]
    lines = [*local_req(X_Mms_Ack_Request="No", To="+447700900101"), *twice]
    seen = send(lines)
    assert of(seen.edited(), "X-Mms-Ack-Request") == [b"Yes", b"Yes"]
    assert of(seen.edited(), "X-Mms-Originator-System") == [b"system-user@mms.gw.example"] * 2
    assert reread(seen, "3gpp").valid
    renamed = send([*lines, ("X-Mms-3GPP-MMS-Version", b"5.5.0")], TO_TYNTEC)
    assert of(renamed.edited(), "X-Mms-MMS-Version") == [b"5.5.0"]


@pytest.mark.parametrize(
    ("wanted", "had", "has"),
    [
        ("yes", "No", [b"Yes"]),
        ("yes", None, [b"Yes"]),
        ("yes", "Yes", [b"Yes"]),
        ("no", "Yes", [b"No"]),
        ("no", "No", [b"No"]),
        ("no", None, []),
    ],
)
def test_outward_an_ack_is_asked_for_as_the_peers_entry_says(wanted: str, had: str | None, has: list[bytes]) -> None:
    config = CONFIG.replace("    max_size: 1MB\n", f"    ack: {{request: {wanted}}}\n")
    seen = send(local_req(X_Mms_Ack_Request=had, To="+447700900101"), config=config)
    assert of(seen.edited(), "X-Mms-Ack-Request") == has
    assert seen.verdict.record is not None
    assert seen.verdict.record.transactions[0].ack_requested == (wanted == "yes")


@pytest.mark.parametrize(("rcpt", "dialect"), [(TO_NORTH, "3gpp"), (TO_TYNTEC, "tyntec")])
def test_outward_what_is_missing_is_completed(rcpt: str, dialect: str) -> None:
    seen = send([("X-Mms-Message-Type", b"MM4_forward.REQ"), ("Subject", b"Hi")], rcpt)
    found = reread(seen, dialect)
    assert found.problems == ()
    number = rcpt[1:14]
    assert {a.number for a in found.recipients} == {number}
    assert found.get("sender").write() == LOCAL
    assert found.get("date").isoformat() == "2026-11-22T10:00:00+00:00"
    assert (found.get("transaction_id"), found.get("message_id")) == (IDS["transaction"], IDS["message"])
    assert found.get("content_type") == "text/plain"
    assert found.get("originator_system").write() == "system-user@mms.gw.example"
    assert found.ack_request
    edited = seen.edited()
    assert of(edited, "Sender") == ([f"{LOCAL}@mms.gw.example".encode()] if dialect == "3gpp" else [])
    assert len({name.lower() for name, _ in edited}) == len(edited), "nothing stands there twice"
    assert seen.verdict.record is not None
    (kept,) = seen.verdict.record.transactions
    assert (kept.transaction_id, kept.message_id, kept.originator) == (
        IDS["transaction"], IDS["message"], "+491511000001",
    )  # fmt: skip
    assert TOKEN not in str(edited), "the token stays inside"


def test_outward_empty_lines_are_filled_and_not_doubled() -> None:
    empty = dict.fromkeys(("Date", "X_Mms_3GPP_MMS_Version", "X_Mms_Priority", "X_Mms_Forward_Counter"), "")
    lines = local_req(To="+447700900101", **empty)
    for rcpt, dialect in ((TO_NORTH, "3gpp"), (TO_TYNTEC, "tyntec")):
        found = reread(send(lines, rcpt), dialect)
        assert found.valid, found.problems
        assert found.get("mms_version") == "5.5.0"
        assert found.get("date").year == 2026


def test_outward_ids_of_the_local_side_stay_byte_for_byte() -> None:
    for identifier in ('"q-a5-qf.1@mms"', "bare.+1/TYPE=PLMN", '"a \\" b"', '"  x  "'):
        seen = send(local_req(X_Mms_Transaction_ID=identifier, X_Mms_Message_ID=identifier), TO_TYNTEC)
        edited = seen.edited()
        assert of(edited, "X-Mms-Transaction-ID") == of(edited, "X-Mms-Message-ID") == [identifier.encode()]


def test_outward_national_numbers_become_international() -> None:
    lines = local_req(From="Ann <01511 000001>", Sender="01511000001@mms.gw.example", Cc="+447700900102")
    to = [("To", b'"x, +y" <01511000009>,\n joe, +447700900101')]
    seen = send([line for line in lines if line[0] != "To"] + to)
    edited = seen.edited()
    assert of(edited, "From") == [b"+491511000001/TYPE=PLMN"]
    assert of(edited, "Sender") == [b"+491511000001/TYPE=PLMN@mms.gw.example"]
    assert of(edited, "To") == [b"+491511000009/TYPE=PLMN,\n joe,\n +447700900101/TYPE=PLMN"]
    assert of(edited, "Cc") == [b"+447700900102"], "what needs no change stays as it is"
    assert reread(seen, "3gpp").problems == ()


def test_outward_everything_written_is_ascii() -> None:
    seen = send(local_req(To=b"J\xf6rg, 01511000009, 12345", Subject=b"Gr\xfc\xdfe"))
    assert of(seen.edited(), "To") == [b"+491511000009/TYPE=PLMN,\n 12345/TYPE=PLMN"]
    assert of(seen.edited(), "Subject") == [b"Gr\xfc\xdfe"], "text for people is not ours to change"


def test_outward_a_line_that_cannot_be_seen_whole_is_not_changed() -> None:
    long = ", ".join(f'"{"x" * 300}" <+4477009{i:05d}>' for i in range(200))
    assert send(local_req(To=long)).verdict.action is Action.ACCEPT, "it goes as it is"
    verdict = send(local_req(To=long + ", 01511000009")).verdict
    assert (verdict.action, verdict.reply.code) == (Action.REJECT, 554)
    assert "To is too long to be changed" in verdict.reply.text


@pytest.mark.parametrize(
    ("sender", "lines", "text"),
    [
        ("<>", {"From": None}, "From is missing and cannot be completed"),
        ("<joe@mms.gw.example>", {"From": None}, "From is missing and cannot be completed"),
        (f"<{LOCAL}@mms.gw.example>", {"X_Mms_Previously_sent_by": b"0, \xe4 <+447700900007>"}, None),
    ],
)
def test_outward_what_cannot_be_completed_is_refused(sender: str, lines: dict[str, Any], text: str | None) -> None:
    verdict = send(local_req(**lines), sender=sender).verdict
    if text is None:
        assert verdict.action is Action.ACCEPT
    else:
        assert (verdict.action, verdict.reply.code) == (Action.REJECT, 554)
        assert text in verdict.reply.text


def test_outward_recipients_of_the_envelope_alone_are_not_named() -> None:
    two = ("<+447700900101@mms.gw.example>", "<+447700900102@mms.gw.example>")
    verdict = send(local_req(To=None), *two).verdict
    assert (verdict.action, verdict.reply.code) == (Action.REJECT, 554)
    assert "To is missing" in verdict.reply.text
    assert reread(send(local_req(To=None), two[0]), "3gpp").recipients[0].number == "+447700900101"


# -- the envelope


@pytest.mark.parametrize(
    ("sender", "lines", "written"),
    [
        (f"<{LOCAL}@mms.gw.example>", {}, f"{LOCAL}@mms.gw.example"),
        ("<whoever@mmsc.gw.example>", {}, f"{LOCAL}@mms.gw.example"),
        ("<>", {}, f"{LOCAL}@mms.gw.example"),
        ("<+491511000002@mmsc.gw.example>", {"From": None, "Sender": None}, "+491511000002/TYPE=PLMN@mms.gw.example"),
        ("<x@y.example>", {"From": "41414/TYPE=PLMN"}, "41414/TYPE=PLMN@mms.gw.example"),
        ("<x@y.example>", {"From": "ann@mail.example"}, "system-user@mms.gw.example"),
        ("<x@y.example>", {"From": "PostMaster"}, "system-user@mms.gw.example"),
    ],
)
def test_outward_the_envelope_sender_is_the_originator_in_our_domain(
    sender: str, lines: dict[str, Any], written: str
) -> None:
    verdict = send(local_req(To="+447700900101", **lines), sender=sender).verdict
    assert (verdict.mail_from, verdict.mail_from_parameters) == (written, f"RET=HDRS ENVID={TOKEN}")


def test_one_recipient_twice_is_delivered_once_and_taken_out_twice() -> None:
    spellings = (TO_NORTH, "<+447700900101@MMS.gw.example>", "<447700900101@mms.gw.example>")
    verdict = send(local_req(), *spellings).verdict
    assert verdict.deleted == spellings, "by the very strings that were seen"
    assert [address for address, _ in verdict.added] == [
        "+447700900101/TYPE=PLMN@mms.north.example.via-north.mm4.invalid",
        f"{TOKEN}@responder.mm4.invalid",
    ]
    assert verdict.record is not None
    assert len(verdict.record.transactions) == 1


def test_transit_is_written_for_the_second_peer_and_answered_to_the_first() -> None:
    lines = req(Sender=None, X_Mms_Originator_System="PostMaster@mms.hub.example")
    seen = Gateway().peer("hub").mail("<x@mms.hub.example>").rcpt(TO_TYNTEC).headers(lines).end()
    found = reread(seen, "tyntec")
    assert (found.valid, found.problems) == (True, ())
    assert found.get("originator_system").write() == "system-user@mms.gw.example"
    (answer,) = seen.verdict.answers
    assert answer.rcpt_to == "PostMaster@mms.hub.example.via-hub.mm4.invalid"
    assert seen.verdict.record is not None
    assert seen.verdict.record.peer == "tyntec"


def test_transit_that_cannot_be_written_is_answered() -> None:
    config = CONFIG.replace("    on_violation: reject\n", "    on_violation: respond\n")
    long = "x" * 60_000
    lines = req(Sender=None, X_Mms_Originator_System=f"PostMaster@mms.hub.example ({long})")
    seen = Gateway(config).peer("hub").mail("<x@mms.hub.example>").rcpt(TO_NORTH).headers(lines).end()
    assert (seen.verdict.action, seen.verdict.status) == (Action.ACCEPT, "Error-message-format-corrupt")
    assert [a.status for a in seen.verdict.answers] == ["Error-message-format-corrupt"]
    assert seen.verdict.added == ((f"{TOKEN}@responder.mm4.invalid", "NOTIFY=NEVER"),)


# -- forms that a dialect gives its addresses and hops

MIXED = CONFIG.replace("    dialect: tyntec\n", "    dialect: mixed-body\n")


def test_a_bare_to_is_written_where_the_dialect_has_it_so() -> None:
    lines = local_req(To="+447700900201/TYPE=PLMN, Ann <+447700900202/TYPE=PLMN@mms.gw.example>")
    out = send(lines, TO_TYNTEC, config=MIXED).edited()
    assert [v.replace(b"\n", b"") for v in of(out, "To")] == [b"+447700900201, +447700900202@mms.gw.example"]
    missing = send(local_req(To=None), TO_TYNTEC, config=MIXED)
    assert of(missing.edited(), "To") == [b"+447700900201"]
    assert [p for p in reread(missing, "mixed-body").problems if p.severity == "error"] == []


def test_the_first_hop_loses_its_index_where_the_dialect_has_none() -> None:
    hops = [("X-Mms-Previously-sent-by", b"0, +447700900007/TYPE=PLMN"), ("X-Mms-Previously-sent-by", b"1, Ann <+447700900008>")]
    out = send([*local_req(), *hops], TO_TYNTEC, config=MIXED).edited()
    assert of(out, "X-Mms-Forwarded-By") == [b"+447700900007/TYPE=PLMN", b"1, Ann <+447700900008>"]
    assert of(out, "X-Mms-Previously-sent-by") == []
    own = send([*local_req(), ("X-Mms-Forwarded-By", b"0, +447700900007/TYPE=PLMN")], TO_TYNTEC, config=MIXED).edited()
    assert of(own, "X-Mms-Forwarded-By") == [b"+447700900007/TYPE=PLMN"]

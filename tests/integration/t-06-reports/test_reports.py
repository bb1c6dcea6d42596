"""Delivery and read reports on real Postfix, in both directions and both dialects: judged, acked, passed on, kept.

What is mandatory comes from the dialect tables themselves, so that a new row is a new test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import LOCAL, Dialogue, Link, Mail, forward_req, headers_of, new_ids, wait_for
from mm4.cli.trace import trace
from mm4.protocol.dialect import Dialect, builtin
from mm4.protocol.reader import read_message

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
DELIVERY, READ = "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"
KINDS = (DELIVERY, READ)
OURS = "+491511000001"
OUR_SYSTEM = "system-user@mms.gw.example"
OK, NOT_FOUND, CORRUPT = "Ok", "Error-message-not-found", "Error-message-format-corrupt"
UNRESOLVED = "Error-sending-address-unresolved"
STATUS = "X-Mms-Request-Status-Code"
SAYS = {DELIVERY: ("X-Mms-MM-Status-Code", "Retrieved"), READ: ("X-Mms-Read-Status", "Read")}
ASKS = {DELIVERY: "X-Mms-Delivery-Report", READ: "X-Mms-Read-Reply"}


@dataclass(frozen=True)
class Peer:
    """One peer of the YAML: where it calls from, its tables, a number of its own, its system."""

    name: str
    source: str
    tables: str
    number: str
    domain: str
    system: str

    @property
    def dialect(self) -> Dialect:
        return builtin(self.tables)

    def header(self, field: str) -> str:
        return self.dialect.fields[field].header


PEERS = {
    "north": Peer("north", "127.0.0.21", "3gpp", "+447700900101", "mms.north.example", "system-user@mms.north.example"),
    "south": Peer("south", "127.0.0.22", "tyntec", "+33600000001", "mm4.south.example", "system@mm4.south.example"),
    "east": Peer("east", "127.0.0.23", "3gpp", "+34600000001", "mms.east.example", "system-user@mms.east.example"),
    "null-sender": Peer("null-sender", "127.0.0.24", "3gpp", "+35600000001", "mms.null.example", "a@mms.null.example"),
}  # fmt: skip
BOTH = ("north", "south")

MANDATORY = [
    (peer, kind, row.field)
    for peer in BOTH
    for kind in KINDS
    for row in PEERS[peer].dialect.pdus[kind]
    if row.presence == "mandatory"
]


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, ("mmsc", "north", "south", "east")) as made:
        yield made


def report(
    kind: str, peer: Peer, about: str, transaction: str, *, of: str, to: str, system: str,
    drop: tuple[str, ...] = (), **change: str | None,
) -> bytes:  # fmt: skip
    """A report in a peer's dialect; `drop` leaves fields out, keywords change one by its field's name."""
    dialect = peer.dialect
    fields: dict[str, str | None] = {
        "sender": f"{of}/TYPE=PLMN",
        "sender_header": system,
        "recipients": f"{to}/TYPE=PLMN",
        "date": "Thu, 12 Nov 2026 02:28:01 +0200",
        "mms_version": "5.5.0",
        "message_type": dialect.types[kind].written,
        "transaction_id": transaction,
        "message_id": about,
        "ack_request": "Yes",
        {DELIVERY: "mm_status", READ: "read_status"}[kind]: SAYS[kind][1],
        **change,
    }
    lines = [(dialect.fields[f].header, v) for f, v in fields.items() if v is not None and f not in drop]
    return "".join(f"{name}: {value}\r\n" for name, value in lines).encode("latin-1") + b"\r\n"


def res(request: Mail, peer: Peer, kind: str, status: str = "Ok", drop: tuple[str, ...] = ()) -> bytes:
    """The peer's RES to what it got."""
    answer = peer.dialect.answer_type(kind)
    assert answer
    lines = {
        peer.header("mms_version"): "5.5.0",
        peer.header("message_type"): peer.dialect.types[answer].written,
        "X-Mms-Transaction-ID": request.header("X-Mms-Transaction-ID"),
        "X-Mms-Message-ID": request.header("X-Mms-Message-ID"),
        STATUS: status,
        "Content-Type": "text/plain",
    }
    return "".join(f"{n}: {v}\r\n" for n, v in lines.items() if n not in drop).encode() + b"\r\n"


def traced(link: Link, identifier: str) -> list[dict[str, Any]]:
    """What `mm4 trace --json` prints, without the start of another Python each time."""
    done = CliRunner().invoke(trace, ["--config", link.gateway.config, "--json", identifier])
    return list(json.loads(done.stdout)["transactions"])


def in_state(link: Link, transaction_id: str, state: str) -> dict[str, Any]:
    (found,) = wait_for(
        lambda: [t for t in traced(link, transaction_id) if t["state"] == state], f"{transaction_id} {state}"
    )
    return found


def asking(content: bytes, flags: str = "Yes") -> bytes:
    """A forward.REQ that asks for both reports, or for none."""
    for name in ASKS.values():
        content = content.replace(f"{name}: No".encode(), f"{name}: {flags}".encode())
    return content


def sent_to(link: Link, peer: Peer, flags: str = "Yes") -> tuple[str, str]:
    """A message of ours that went to a peer, and its RES came; its ids."""
    ids = new_ids("mms.gw.example")
    content = asking(forward_req(ids=ids, sender=OURS, to=peer.number), flags)
    content = content.replace(b"@mms.north.example", b"@mms.gw.example")
    rcpt = (f"{peer.number}/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    (mail,) = link.hops[peer.name].wait_for(ids[1])
    answer = res(mail, peer, "MM4_forward.REQ")
    assert link.gateway.send(answer, source=peer.source, mail_from="", rcpt=(OUR_SYSTEM,)).code == 250
    in_state(link, ids[0], "answered")
    return ids


def came_from(link: Link, peer: Peer, flags: str = "Yes") -> tuple[str, str]:
    """A message of a peer that reached our MMSC; its ids."""
    ids = new_ids(peer.domain)
    content = asking(forward_req(ids=ids, sender=peer.number, tyntec=peer.tables == "tyntec"), flags)
    content = content.replace(b"mms.north.example", peer.domain.encode())
    assert link.gateway.send(content, source=peer.source, mail_from=f"{peer.number}/TYPE=PLMN@{peer.domain}").code == 250
    link.mmsc.wait_for(ids[1])
    in_state(link, ids[0], "answered")
    return ids


def report_in(
    link: Link, peer: Peer, content: bytes, *, rcpt: str = f"{OURS}/TYPE=PLMN@mms.gw.example",
    mail_from: str | None = None,
) -> Dialogue:  # fmt: skip
    sender = peer.system if mail_from is None else mail_from
    return link.gateway.send(content, source=peer.source, mail_from=sender, rcpt=(rcpt,))


def report_out(link: Link, peer: Peer, content: bytes, rcpt: str | None = None, mail_from: str = OUR_SYSTEM) -> Dialogue:
    address = rcpt or f"{peer.number}/TYPE=PLMN@{peer.domain}"
    return link.gateway.send(content, source=LOCAL, mail_from=mail_from, rcpt=(address,))


def theirs(kind: str, peer: Peer, ids: tuple[str, str], **more: Any) -> tuple[str, bytes]:
    """A peer's report about a message of ours, and its transaction id."""
    transaction_id = new_ids(peer.domain)[0]
    more = {"of": peer.number, "to": OURS, "system": peer.system, **more}
    return transaction_id, report(kind, peer, ids[1], transaction_id, **more)


def ours(kind: str, peer: Peer, ids: tuple[str, str], **more: Any) -> tuple[str, bytes]:
    """Our MMSC's report about a message of a peer, in the names of 3GPP, and its transaction id."""
    transaction_id = new_ids("mms.gw.example")[0]
    more = {"of": OURS, "to": peer.number, "system": "mmsc@mmsc.gw.example", **more}
    return transaction_id, report(kind, PEERS["north"], ids[1], transaction_id, **more)


def nowhere(link: Link, text: str, *but: str) -> None:
    """Nobody got it but those named."""
    link.gateway.quiet()
    assert sorted(name for name, hop in link.hops.items() if hop.carrying(text)) == sorted(but)


# -- from a peer to our side


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_report_reaches_the_originators_mmsc_and_the_peer_gets_its_res(link: Link, name: str, kind: str) -> None:
    peer = PEERS[name]
    ids = sent_to(link, peer)
    transaction_id, content = theirs(kind, peer, ids)
    dialogue = report_in(link, peer, content)
    assert dialogue.code == 250
    (inside,) = link.mmsc.wait_for(transaction_id)
    assert inside.rcpt == [f"{OURS}@mmsc.gw.example"]
    assert re.fullmatch(r"[0-9a-f]{32}@mms\.gw\.example", inside.mail_from)
    before = [(n, b"No" if n == "X-Mms-Ack-Request" else v) for n, v in headers_of(content)]
    added = ("Received", "Message-Id")
    assert [(n, v) for n, v in headers_of(inside.content) if n not in added] == before
    (answer,) = link.hops[name].wait_for(transaction_id)
    written = read_message(answer.content, peer.tables)
    assert written.valid, written.problems
    assert written.type == peer.dialect.answer_type(kind)
    assert answer.header(peer.header("message_type")) == peer.dialect.types[written.type or ""].written
    assert answer.all(STATUS) == [OK]
    assert answer.all("X-Mms-Transaction-ID") == [transaction_id]
    assert answer.all("X-Mms-Message-ID") == [ids[1]]
    assert answer.rcpt == [peer.system]
    assert answer.mail_from == OUR_SYSTEM
    done = in_state(link, transaction_id, "answered")
    assert (done["type"], done["direction"], done["peer"], done["status"]) == (kind, "in", name, OK)
    assert (done["report"], done["originator"], done["recipient"]) == (SAYS[kind][1], peer.number, OURS)
    # One question tells the whole story: the message and what was reported of it.
    assert {t["type"] for t in traced(link, ids[1])} == {"MM4_forward.REQ", kind}


@pytest.mark.parametrize("ack", ["No", None])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_no_ack_where_none_was_asked_for(link: Link, name: str, kind: str, ack: str | None) -> None:
    peer = PEERS[name]
    transaction_id, content = theirs(kind, peer, sent_to(link, peer), ack_request=ack)
    assert report_in(link, peer, content).code == 250
    link.mmsc.wait_for(transaction_id)
    nowhere(link, transaction_id, "mmsc")
    assert in_state(link, transaction_id, "accepted")["status"] is None


@pytest.mark.parametrize("ack", ["Yes", "No"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_report_about_an_unknown_message_is_answered_so(link: Link, name: str, kind: str, ack: str) -> None:
    peer = PEERS[name]
    transaction_id, content = theirs(kind, peer, new_ids(), ack_request=ack)
    dialogue = report_in(link, peer, content)
    if ack == "No":
        assert dialogue.data is not None
        assert (dialogue.data[0], dialogue.data[1][:5]) == (550, "5.1.0")
        nowhere(link, transaction_id)
        return
    assert dialogue.code == 250
    (answer,) = link.hops[name].wait_for(transaction_id)
    assert answer.all(STATUS) == [NOT_FOUND]
    nowhere(link, transaction_id, name)
    assert in_state(link, transaction_id, "refused")["status"] == NOT_FOUND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["east", "south"])
def test_a_foreign_peer_knows_nothing_of_the_message(link: Link, name: str, kind: str) -> None:
    ids = sent_to(link, PEERS["north"])
    foreign = PEERS[name]
    transaction_id, content = theirs(kind, foreign, ids, of=PEERS["north"].number)
    assert report_in(link, foreign, content).code == 250
    (answer,) = link.hops[name].wait_for(transaction_id)
    assert answer.all(STATUS) == [NOT_FOUND]
    nowhere(link, transaction_id, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipient_who_was_not_the_messages_cannot_report_on_it(link: Link, kind: str) -> None:
    peer = PEERS["north"]
    transaction_id, content = theirs(kind, peer, sent_to(link, peer), of="+447700900199")
    report_in(link, peer, content)
    (answer,) = link.north.wait_for(transaction_id)
    assert answer.all(STATUS) == [NOT_FOUND]


@pytest.mark.parametrize(("name", "kind", "field"), MANDATORY, ids=["-".join(row) for row in MANDATORY])
def test_a_mandatory_field_is_missing(link: Link, name: str, kind: str, field: str) -> None:
    peer = PEERS[name]
    ids = new_ids("mms.gw.example")
    transaction_id, content = theirs(kind, peer, ids, drop=(field,))
    content = f"X-Test: {transaction_id}\r\n".encode() + content
    assert report_in(link, peer, content).code == 250
    # The answer without ids holds neither of them, so it is found by the whole traffic.
    unique = ids[1] if field == "transaction_id" else transaction_id
    (answer,) = link.hops[name].wait_for(unique)
    assert answer.all(STATUS) == [CORRUPT]
    wanted = peer.dialect.answer_type(kind) if field != "message_type" else "MM4_forward.RES"
    assert answer.header(peer.header("message_type")) == peer.dialect.types[wanted or ""].written
    assert peer.header(field) in (answer.header("X-Mms-Status-Text") or "") or field == "message_type"
    nowhere(link, unique, name)


@pytest.mark.parametrize(
    ("kind", "field", "value", "status"),
    [
        (READ, "read_status", "Perhaps", CORRUPT), (DELIVERY, "date", "yesterday", CORRUPT),
        (DELIVERY, "sender", "<>", UNRESOLVED), (READ, "message_id", '""', CORRUPT),
        (DELIVERY, "transaction_id", "t" * 901, CORRUPT), (READ, "mms_version", "five", CORRUPT),
        (DELIVERY, "recipients", "nobody at all", CORRUPT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", BOTH)
def test_a_value_that_cannot_be_read(link: Link, name: str, kind: str, field: str, value: str, status: str) -> None:
    peer = PEERS[name]
    unique = new_ids()
    transaction_id, content = theirs(kind, peer, unique, **{field: value})
    report_in(link, peer, content)
    (answer,) = link.hops[name].wait_for(unique[1] if field == "transaction_id" else transaction_id)
    assert answer.all(STATUS) == [status]


@pytest.mark.parametrize("value", ["Expired", "Rejected", "Deferred", "Indeterminate", "Forwarded", "Unrecognised", "Unrecognized", "Gone"])
def test_every_mm_status_is_passed_on_as_it_stands(link: Link, value: str) -> None:
    peer = PEERS["north"]
    transaction_id, content = theirs(DELIVERY, peer, sent_to(link, peer), mm_status=value)
    report_in(link, peer, content)
    (inside,) = link.mmsc.wait_for(transaction_id)
    assert inside.all("X-Mms-MM-Status-Code") == [value]
    known = value if value in peer.dialect.fields["mm_status"].values else "Unrecognised"
    assert in_state(link, transaction_id, "answered")["report"] == known


def test_a_report_may_come_to_our_system_and_from_nobody(link: Link) -> None:
    peer = PEERS["north"]
    transaction_id, content = theirs(DELIVERY, peer, sent_to(link, peer))
    assert report_in(link, peer, content, rcpt=OUR_SYSTEM, mail_from="").code == 250
    (inside,) = link.mmsc.wait_for(transaction_id)
    assert inside.rcpt == [f"{OURS}@mmsc.gw.example"]
    link.north.wait_for(transaction_id)
    assert link.gateway.unclaimed() == []


# -- from our side to a peer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_report_of_our_mmsc_reaches_the_peer_in_its_own_terms(link: Link, name: str, kind: str) -> None:
    peer = PEERS[name]
    ids = came_from(link, peer)
    transaction_id, content = ours(kind, peer, ids)
    assert report_out(link, peer, content).code == 250
    # The RES to the message was there before, under other ids.
    (mail,) = link.hops[name].wait_for(transaction_id)
    assert mail.mail_from == OUR_SYSTEM
    assert mail.rcpt == [f"{peer.number}/TYPE=PLMN@{peer.domain}"]
    pdu = read_message(mail.content, peer.tables)
    assert pdu.valid
    assert [p for p in pdu.problems if p.rule == "name"] == []
    assert (pdu.type, pdu.get("message_id"), pdu.get("transaction_id")) == (kind, ids[1], transaction_id)
    assert (pdu.get("sender").value, [a.value for a in pdu.recipients]) == (OURS, [peer.number])
    assert mail.all(peer.header("message_type")) == [peer.dialect.types[kind].written]
    assert mail.all(peer.header("mms_version")) == ["5.5.0"]
    assert mail.all("X-Mms-Originator-System") == [OUR_SYSTEM]
    assert mail.all("Sender") == [OUR_SYSTEM]
    assert mail.all("X-Mms-Ack-Request") == ["Yes"]
    assert mail.all(SAYS[kind][0]) == [SAYS[kind][1]]
    in_state(link, transaction_id, "waiting")
    # Mbuni and others leave the message id out of the RES to a read report.
    drop = ("X-Mms-Message-ID",) if kind == READ else ()
    answer = link.gateway.send(res(mail, peer, kind, drop=drop), source=peer.source, mail_from="", rcpt=(OUR_SYSTEM,))
    assert answer.code == 250
    done = in_state(link, transaction_id, "answered")
    assert (done["direction"], done["peer"], done["status"], done["report"]) == ("out", name, OK, SAYS[kind][1])
    nowhere(link, transaction_id, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_report_that_was_not_asked_for_is_recorded_as_suppressed(link: Link, name: str, kind: str) -> None:
    peer = PEERS[name]
    ids = came_from(link, peer, flags="No")
    transaction_id, content = ours(kind, peer, ids)
    dialogue = report_out(link, peer, content)
    assert dialogue.code == 250
    kept = in_state(link, transaction_id, "suppressed")
    assert (kept["type"], kept["peer"], kept["report"]) == (kind, name, SAYS[kind][1])
    (line,) = link.gateway.verdicts(dialogue.queue_id)
    assert " verdict=discard " in line
    assert "did not ask" in line
    nowhere(link, transaction_id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drop", [("transaction_id",), ("date",), ("recipients",), ("mms_version",), ("sender_header", "ack_request")])
@pytest.mark.parametrize("name", BOTH)
def test_what_our_mmsc_left_out_is_completed(link: Link, name: str, drop: tuple[str, ...], kind: str) -> None:
    peer = PEERS[name]
    ids = came_from(link, peer)
    unique = new_ids()[0]
    _, content = ours(kind, peer, ids, drop=drop)
    assert report_out(link, peer, f"X-Test: {unique}\r\n".encode() + content).code == 250
    (mail,) = link.hops[name].wait_for(unique)
    pdu = read_message(mail.content, peer.tables)
    assert pdu.valid, pdu.problems
    assert [a.value for a in pdu.recipients] == [peer.number]
    assert in_state(link, pdu.get("transaction_id"), "waiting")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["sender", "message_id", "says"])
def test_what_only_our_mmsc_knows_is_asked_for(link: Link, field: str, kind: str) -> None:
    peer = PEERS["north"]
    field = {DELIVERY: "mm_status", READ: "read_status"}[kind] if field == "says" else field
    transaction_id, content = ours(kind, peer, came_from(link, peer), drop=(field,))
    dialogue = report_out(link, peer, content)
    assert dialogue.data is not None
    assert dialogue.data[0] == 554
    assert peer.header(field) in dialogue.data[1]
    nowhere(link, transaction_id)


@pytest.mark.parametrize("kind", KINDS)
def test_our_mmsc_is_told_that_nobody_knows_the_message(link: Link, kind: str) -> None:
    peer = PEERS["north"]
    unknown = new_ids()
    transaction_id, content = ours(kind, peer, unknown)
    dialogue = report_out(link, peer, content)
    assert dialogue.data is not None
    assert dialogue.data[0] == 550
    assert unknown[1] in dialogue.data[1]
    nowhere(link, transaction_id)


def test_a_report_goes_to_the_peer_of_the_message_and_not_where_the_numbers_route_leads(link: Link) -> None:
    """East has no route at all; its subscriber's message came from it all the same."""
    peer = PEERS["east"]
    ids = came_from(link, peer)
    transaction_id, content = ours(DELIVERY, peer, ids)
    assert report_out(link, peer, content).code == 250
    (mail,) = link.east.wait_for(transaction_id)
    assert mail.rcpt == [f"{peer.number}/TYPE=PLMN@{peer.domain}"]


def test_a_peer_that_wants_null_senders_and_no_acks(link: Link) -> None:
    peer = PEERS["null-sender"]
    ids = new_ids(peer.domain)
    content = asking(forward_req(ids=ids, sender=peer.number, ack="No")).replace(b"mms.north.example", peer.domain.encode())
    assert link.gateway.send(content, source=peer.source, mail_from=f"{peer.number}@{peer.domain}").code == 250
    link.mmsc.wait_for(ids[1])
    transaction_id, report_ = ours(READ, peer, ids)
    assert report_out(link, peer, report_).code == 250
    (mail,) = link.east.wait_for(transaction_id)
    assert mail.mail_from in ("", "<>", None)
    assert mail.all("X-Mms-Ack-Request") == ["No"]
    assert in_state(link, transaction_id, "accepted")


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_refuses_our_report_is_noted(link: Link, kind: str) -> None:
    peer = PEERS["north"]
    ids = came_from(link, peer)
    transaction_id, content = ours(kind, peer, ids)
    link.north.reply_rcpt = "550 5.1.1 No such number"
    try:
        assert report_out(link, peer, content).code == 250
        bounced = in_state(link, transaction_id, "bounced")
    finally:
        link.north.reply_rcpt = "250 OK"
    assert "No such number" in str(bounced["events"])
    nowhere(link, transaction_id)
    assert link.gateway.unclaimed() == []


# -- the RES to what we reported


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BOTH)
def test_a_res_to_a_report_is_taken_where_it_says_what_became_of_it(link: Link, name: str, kind: str) -> None:
    """One without transaction id or with an unknown status is refused, and a stranger's changes nothing."""
    peer, other = PEERS[name], PEERS["east"]
    transaction_id, content = ours(kind, peer, came_from(link, peer))
    assert report_out(link, peer, content).code == 250
    (mail,) = link.hops[name].wait_for(transaction_id)
    in_state(link, transaction_id, "waiting")

    def answer(sender: Peer, *, status: str = "Ok", drop: tuple[str, ...] = ()) -> int:
        as_sent = res(mail, peer if sender is peer else other, kind, status, drop)
        return link.gateway.send(as_sent, source=sender.source, mail_from="", rcpt=(OUR_SYSTEM,)).code

    assert answer(peer, drop=("X-Mms-Transaction-ID",)) == 554
    assert answer(peer, status="Error-nonsense") == 554
    assert answer(peer, drop=(STATUS,)) == 554
    assert answer(other, status="Error-unspecified") == 250
    assert in_state(link, transaction_id, "waiting")["status"] is None
    assert answer(peer, drop=(peer.header("mms_version"), "Content-Type")) == 250
    assert in_state(link, transaction_id, "answered")["status"] == OK
    nowhere(link, transaction_id, name)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [(READ, "read_status", "Perhaps"), (DELIVERY, "date", "yesterday"), (DELIVERY, "message_id", "m-\xe9"), (READ, "sender", "<>")],
)
def test_an_unreadable_value_in_our_own_report_is_named(link: Link, kind: str, field: str, value: str) -> None:
    peer = PEERS["north"]
    transaction_id, content = ours(kind, peer, came_from(link, peer), **{field: value})
    dialogue = report_out(link, peer, content)
    assert dialogue.data is not None
    assert dialogue.data[0] in (553, 554)
    assert peer.header(field) in dialogue.data[1]
    nowhere(link, transaction_id)


# -- in transit


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_about_a_message_in_transit_goes_back_through_us(link: Link, kind: str) -> None:
    """North's message to a number of south; south's report in tyntec's terms becomes north's in 3GPP's."""
    north, south = PEERS["north"], PEERS["south"]
    ids = new_ids(north.domain)
    content = asking(forward_req(ids=ids, sender=north.number, to=south.number))
    rcpt = (f"{south.number}/TYPE=PLMN@mms.gw.example",)
    sender = f"{north.number}/TYPE=PLMN@{north.domain}"
    assert link.gateway.send(content, source=north.source, mail_from=sender, rcpt=rcpt).code == 250
    (through,) = link.south.wait_for(ids[1])
    assert through.header("X-Mms-MM1-Message-Type") == "MM4_Forward.REQ"
    transaction_id, about = theirs(kind, south, ids, to=north.number)
    back = f"{north.number}/TYPE=PLMN@mms.gw.example"
    assert report_in(link, south, about, rcpt=back).code == 250
    (mail,) = link.north.wait_for(transaction_id)
    assert mail.rcpt == [f"{north.number}/TYPE=PLMN@{north.domain}"]
    assert mail.header("X-Mms-Message-Type") == kind
    assert mail.header("X-Mms-Message-ID") == ids[1]
    assert mail.header("X-Mms-Originator-System") == OUR_SYSTEM
    (answer,) = [m for m in link.south.wait_for(transaction_id) if m.header(STATUS)]
    assert answer.header(STATUS) == OK
    link.gateway.quiet()
    assert link.mmsc.carrying(transaction_id) == []

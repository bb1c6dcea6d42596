"""Every built-in dialect, and one that an operator wrote, over real Postfix: read as it is written, written as it is read.

Each peer speaks by its own tables alone: what it sends is made by them, and what it gets is read by them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, Link, forward_req, new_ids, wait_for
from mm4.protocol.address import parse_address
from mm4.protocol.dialect import Dialect, builtin, builtin_names
from mm4.protocol.dialectfile import parse_dialect
from mm4.protocol.headers import join
from mm4.protocol.reader import read_message
from mm4.protocol.writer import Verbatim, write

pytestmark = pytest.mark.postfix

HERE = Path(__file__).parent
OWN = """\
name: harbour
extends: bare-ids
title: An invented operator that renames, spells and demands
version: "6.3.0"
types:
  MM4_forward.REQ: {written: MM4_Forward.Req, source: "page 4"}
fields:
  transaction_id: {header: X-Mms-TransactionID, source: "page 5"}
  expiry: {header: X-Mms-Expires, source: "page 6"}
  mm_status: {spellings: {Delivered: Retrieved}, source: "trace"}
statuses:
  Error-service-denied: {spellings: [Error-not-subscribed], source: "page 9"}
"""
NAMES = (*builtin_names(), "harbour")
OURS, OUR_SYSTEM = "+491511000001", "system-user@mms.gw.example"
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


def tables(name: str) -> Dialect:
    return parse_dialect(OWN, "harbour.yaml") if name == "harbour" else builtin(name)


def source(name: str) -> str:
    return f"127.0.0.{120 + NAMES.index(name)}"


def number(name: str) -> str:
    return f"+4477009{NAMES.index(name):02}001"


def domain(name: str) -> str:
    return f"mms.{name.replace('3', 'three')}.example"


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    own = tmp_path_factory.mktemp("own") / "harbour.yaml"
    own.write_text(OWN)
    peers = "\n".join(
        f"  at-{name}: {{dialect: {own if name == 'harbour' else name}, domains: [{domain(name)}], "
        f"networks: [{source(name)}/32], next_hop: \"@peer@\"}}"
        for name in NAMES
    )
    routes = "\n".join(f"  - {{prefix: \"{number(name)[:-3]}\", peer: at-{name}}}" for name in NAMES)
    config = (HERE / "mm4.yaml").read_text().replace("@peers@", peers).replace("@routes@", routes)
    with Link(config, ("mmsc", "peer")) as made:
        yield made


def written(name: str, kind: str, body: bytes = b"hello\r\n", **values: Any) -> bytes:
    """A PDU as this peer writes it, every mandatory row filled."""
    dialect = tables(name)
    standard: dict[str, Any] = {
        "sender": parse_address(number(name)),
        "sender_header": parse_address(f"system-user@{domain(name)}"),
        "recipients": (parse_address(OURS),),
        "date": NOW,
        "content_type": Verbatim("text/plain"),
        "ack_request": True,
        "originator_system": parse_address(f"system-user@{domain(name)}"),
        "delivery_report": True,
        "read_reply": True,
        "mm_status": "Retrieved",
        "read_status": "Read",
        "status_code": "Ok",
        **values,
    }
    rows = {row.field for row in dialect.pdus[kind]}
    return join(write(kind, {k: v for k, v in standard.items() if k in rows}, dialect), body)


def came(link: Link, name: str) -> tuple[str, str]:
    """A forward.REQ of the peer, which our MMSC got."""
    ids = new_ids(domain(name))
    content = written(name, "MM4_forward.REQ", transaction_id=ids[0], message_id=ids[1])
    sender = f"{number(name)}/TYPE=PLMN@{domain(name)}"
    assert link.gateway.send(content, source=source(name), mail_from=sender).code == 250
    link.mmsc.wait_for(ids[1])
    return ids


@pytest.mark.parametrize("name", NAMES)
def test_a_message_gets_a_res_that_its_own_tables_read(link: Link, name: str) -> None:
    ids = came(link, name)
    (answer,) = link.peer.wait_for(ids[0])
    pdu = read_message(answer.content, tables(name))
    assert pdu.problems == ()
    assert (pdu.type, pdu.get("status_code")) == ("MM4_forward.RES", "Ok")
    assert (pdu.get("transaction_id"), pdu.get("message_id")) == ids
    wanted = [tables(name).fields[row.field].header for row in tables(name).pdus["MM4_forward.RES"]]
    got = [header for header, _ in _headers(answer.content) if header in wanted]
    assert got == [header for header in wanted if header in got], "in the dialect's order"
    written_fields = tables(name).written("MM4_forward.RES")
    assert {tables(name).fields[field].header for field in written_fields} <= set(got)
    # By the private line Postfix adds nothing, so what the dialect leaves out is not there.
    for field, header in (("date", "Date"), ("content_type", "Content-Type"), ("sender", "From")):
        assert (answer.header(header) is not None) is (field in written_fields), header


@pytest.mark.parametrize("name", NAMES)
def test_a_message_of_ours_reads_without_a_warning(link: Link, name: str) -> None:
    ids = new_ids("mms.gw.example")
    content = forward_req(ids=ids, sender=OURS, to=number(name), system=None, drop=("Sender",),
                          extra=(("X-Mms-Forwarded-By", f"{OURS}/TYPE=PLMN"), ("X-Mms-Forward-Counter", "1")))  # fmt: skip
    rcpt = (f"{number(name)}/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}@mms.gw.example", rcpt=rcpt).code == 250
    (mail,) = link.peer.wait_for(ids[1])
    pdu = read_message(mail.content, tables(name))
    assert pdu.problems == ()
    assert (pdu.type, pdu.get("transaction_id"), pdu.get("message_id")) == ("MM4_forward.REQ", *ids)
    answer = written(name, "MM4_forward.RES", transaction_id=ids[0], message_id=ids[1])
    assert link.gateway.send(answer, source=source(name), mail_from="", rcpt=(OUR_SYSTEM,)).code == 250
    wait_for(lambda: [t for t in link.gateway.trace(ids[1]) if (t["state"], t["status"]) == ("answered", "Ok")], "the RES")


@pytest.mark.parametrize("kind", ["MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"])
@pytest.mark.parametrize("name", NAMES)
def test_a_report_of_ours_reads_without_a_warning(link: Link, name: str, kind: str) -> None:
    _, message_id = came(link, name)
    transaction_id = new_ids("mms.gw.example")[0]
    says = "X-Mms-MM-Status-Code: Retrieved" if "delivery" in kind else "X-Mms-Read-Status: Read"
    content = (
        f"From: {OURS}/TYPE=PLMN\r\nX-Mms-3GPP-MMS-Version: 5.5.0\r\nX-Mms-Message-Type: {kind}\r\n"
        f"X-Mms-Transaction-ID: {transaction_id}\r\nX-Mms-Message-ID: {message_id}\r\n{says}\r\n\r\n"
    ).encode()
    rcpt = (f"{number(name)}/TYPE=PLMN@{domain(name)}",)
    assert link.gateway.send(content, source=LOCAL, mail_from=OUR_SYSTEM, rcpt=rcpt).code == 250
    (mail,) = link.peer.wait_for(transaction_id)
    pdu = read_message(mail.content, tables(name))
    assert pdu.problems == ()
    assert (pdu.type, pdu.get("message_id")) == (kind, message_id)
    assert [a.number for a in pdu.recipients] == [number(name)]


def test_an_own_dialects_words_are_understood(link: Link) -> None:
    """Its type, its header, its status; and the error that it spells in its own way."""
    ids = came(link, "harbour")
    (answer,) = link.peer.wait_for(ids[0])
    assert answer.all("X-Mms-TransactionID") == [ids[0]]
    assert answer.all("X-Mms-3GPP-MMS-Version") == ["6.3.0"]
    sent = new_ids("mms.gw.example")
    content = forward_req(ids=sent, sender=OURS, to=number("harbour"), system=None, drop=("Sender",))
    content = content.replace(b"X-Mms-Delivery-Report: No", b"X-Mms-Delivery-Report: Yes")
    rcpt = (f"{number('harbour')}@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}@mms.gw.example", rcpt=rcpt).code == 250
    (mail,) = link.peer.wait_for(sent[1])
    assert mail.all("X-Mms-Message-Type") == ["MM4_Forward.Req"]
    assert mail.all("X-Mms-TransactionID") == [sent[0]]
    assert mail.all("X-Mms-Expires") == ["Thu, 19 Nov 2099 00:28:02 GMT"]
    assert mail.all("X-Mms-Expiry") == mail.all("X-Mms-Transaction-ID") == []
    denied = written("harbour", "MM4_forward.RES", transaction_id=sent[0], message_id=sent[1])
    denied = denied.replace(b"Code: Ok", b"Code: Error-not-subscribed")
    assert link.gateway.send(denied, source=source("harbour"), mail_from="", rcpt=(OUR_SYSTEM,)).code == 250
    wait_for(lambda: [t for t in link.gateway.trace(sent[1]) if t["status"] == "Error-service-denied"], "the RES")
    transaction_id = new_ids(domain("harbour"))[0]
    report = written("harbour", "MM4_delivery_report.REQ", transaction_id=transaction_id, message_id=sent[1])
    report = report.replace(b"Code: Retrieved", b"Code: Delivered")
    assert link.gateway.send(report, source=source("harbour"), mail_from=f"a@{domain('harbour')}").code == 250
    (told,) = wait_for(lambda: [t for t in link.gateway.trace(transaction_id) if t["state"] == "answered"], "the report's RES")
    assert told["report"] == "Retrieved"


def test_a_dialect_file_that_breaks_is_refused_by_hup_and_the_old_one_stays(link: Link, tmp_path: Path) -> None:
    """The path stands in the effective file; what is wrong stands in the log with its line."""
    config = Path(link.gateway.config)
    text = config.read_text()
    own = next(line for line in text.replace("{", "\n").replace(",", "\n").splitlines() if "harbour.yaml" in line)
    path = Path(own.partition("dialect:")[2].strip().strip("'\""))
    try:
        path.write_text(OWN.replace("X-Mms-TransactionID", "Received"))
        os.kill(link.gateway.daemon(), signal.SIGHUP)
        line = link.gateway.wait_log("reload=.refused")
        assert "harbour.yaml:8" in link.gateway.log()
        assert "Received is a header of mail itself" in link.gateway.log(), line
        ids = came(link, "harbour")
        (answer,) = link.peer.wait_for(ids[0])
        assert answer.all("X-Mms-TransactionID") == [ids[0]]
    finally:
        path.write_text(OWN)
        os.kill(link.gateway.daemon(), signal.SIGHUP)
    link.gateway.wait_log("reload=done")


def _headers(content: bytes) -> list[tuple[str, bytes]]:
    from harness import headers_of

    return headers_of(content)

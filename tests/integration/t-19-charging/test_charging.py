"""Charging records on real Postfix: each of the nine made by the real thing with either dialect, and its file closed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import LOCAL, Link, Mail, forward_req, mm4, new_ids, wait_for
from mm4.protocol.charging import RECORD_TYPES
from mm4.protocol.dialect import builtin
from mm4.store import Store

pytestmark = pytest.mark.postfix

YAML = (Path(__file__).parent / "mm4.yaml").read_text()
ON = "cdr: {rotate: {records: 1000, after: 1s}}"
DELIVERY, READ, FORWARD = "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ", "MM4_forward.REQ"
OURS, OUR_SYSTEM = "+491511000001", "system-user@mms.gw.example"
SAYS = {DELIVERY: ("X-Mms-MM-Status-Code", "Retrieved"), READ: ("X-Mms-Read-Status", "Read")}


@dataclass(frozen=True)
class Peer:
    name: str
    source: str
    tables: str
    number: str
    domain: str

    @property
    def system(self) -> str:
        return f"system@{self.domain}"


NORTH = Peer("north", "127.0.0.21", "3gpp", "+447700900101", "mms.north.example")
SOUTH = Peer("south", "127.0.0.22", "tyntec", "+33600000001", "mm4.south.example")
PEERS = pytest.mark.parametrize("peer", [NORTH, SOUTH], ids=lambda p: p.name)


@pytest.fixture(scope="module")
def link() -> Iterator[Link]:
    with Link(YAML, cdr=ON) as made:
        yield made


def lines(peer: Peer, kind: str, transaction: str, about: str, **more: str) -> bytes:
    """A PDU in the header names of a peer's dialect."""
    dialect = builtin(peer.tables)
    fields = {"mms_version": "5.5.0", "message_type": dialect.types[kind].written, "transaction_id": transaction,
              "message_id": about, **more}  # fmt: skip
    written = "".join(f"{dialect.fields[name].header}: {value}\r\n" for name, value in fields.items())
    return written.encode() + b"\r\n"


def answer(link: Link, peer: Peer, request: Mail, kind: str, status: str = "Ok") -> None:
    """The peer's RES to what it got."""
    res = builtin(peer.tables).answer_type(kind)
    assert res
    transaction, about = request.header("X-Mms-Transaction-ID"), request.header("X-Mms-Message-ID")
    content = lines(peer, res, transaction or "", about or "", status_code=status)
    assert link.gateway.send(content, source=peer.source, mail_from="", rcpt=(OUR_SYSTEM,)).code == 250


def report(peer: Peer, kind: str, about: str, of: str, to: str, system: str) -> tuple[str, bytes]:
    transaction = new_ids(peer.domain)[0]
    says = {DELIVERY: "mm_status", READ: "read_status"}[kind]
    content = lines(
        peer, kind, transaction, about, sender=f"{of}/TYPE=PLMN", sender_header=system, recipients=f"{to}/TYPE=PLMN",
        date="Thu, 12 Nov 2026 02:28:01 +0200", ack_request="Yes", **{says: SAYS[kind][1]},
    )  # fmt: skip
    return transaction, content


def asking(content: bytes) -> bytes:
    for name in (b"X-Mms-Delivery-Report", b"X-Mms-Read-Reply"):
        content = content.replace(name + b": No", name + b": Yes")
    return content


def sent_to(link: Link, peer: Peer) -> tuple[tuple[str, str], Mail]:
    """A message of ours that a peer got, with its ids."""
    ids = new_ids("mms.gw.example")
    content = asking(forward_req(ids=ids, sender=OURS, to=peer.number)).replace(b"@mms.north.example", b"@mms.gw.example")
    rcpt = (f"{peer.number}/TYPE=PLMN@mms.gw.example",)
    assert link.gateway.send(content, source=LOCAL, mail_from=f"{OURS}/TYPE=PLMN@mms.gw.example", rcpt=rcpt).code == 250
    (mail,) = link.hops[peer.name].wait_for(ids[1])
    return ids, mail


def came_from(link: Link, peer: Peer) -> tuple[str, str]:
    """A message of a peer that reached our MMSC and was answered; its ids."""
    ids = new_ids(peer.domain)
    content = asking(forward_req(ids=ids, sender=peer.number, tyntec=peer.tables == "tyntec"))
    content = content.replace(b"mms.north.example", peer.domain.encode())
    assert link.gateway.send(content, source=peer.source, mail_from=f"{peer.number}/TYPE=PLMN@{peer.domain}").code == 250
    link.mmsc.wait_for(ids[1])
    link.hops[peer.name].wait_for(ids[1])
    return ids


def exported(link: Link, *arguments: str) -> list[dict[str, Any]]:
    done = mm4("cdr", "export", "--config", link.gateway.config, *arguments, check=False)
    assert done.returncode in (0, 1), done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_message(link: Link, message_id: str, *types: str) -> list[dict[str, Any]]:
    """The records about a message, once those types are there; nothing else may be."""

    def look() -> bool:
        with Store.open(f"sqlite:///{link.gateway.folder}/sandbox/mm4.db", migrate=False, read_only=True) as store:
            return set(types) <= {r.record_type for r in store.charges.search() if r.message_id == message_id}

    wait_for(look, f"{', '.join(types)} of {message_id}")
    link.gateway.quiet()
    found = [record for record in exported(link) if record["message_id"] == message_id]
    assert sorted(r["record_type"] for r in found) == sorted(types)
    return found


def folder(link: Link) -> Path:
    return next(link.gateway.folder.rglob("cdr"))


def filed(link: Link) -> list[dict[str, Any]]:
    """Every record in the closed files."""
    files = sorted(file for file in folder(link).glob("mm4-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@PEERS
def test_what_we_send_and_what_is_reported_of_it(link: Link, peer: Peer) -> None:
    ids, mail = sent_to(link, peer)
    (request,) = of_message(link, ids[1], "MMO4FRq")
    assert (request["peer"], request["originator"], request["recipient"]) == (peer.name, OURS, peer.number)
    assert (request["transaction_id"], request["request_status"]) == (ids[0], None)
    assert request["delivery_report_requested"]
    assert request["read_reply_requested"]
    assert request["ack_requested"]
    answer(link, peer, mail, FORWARD)
    # Sent twice, charged once.
    answer(link, peer, mail, FORWARD, "Error-network-problem")
    for kind in (DELIVERY, READ):
        transaction, content = report(peer, kind, ids[1], peer.number, OURS, peer.system)
        rcpt = (f"{OURS}/TYPE=PLMN@mms.gw.example",)
        assert link.gateway.send(content, source=peer.source, mail_from=peer.system, rcpt=rcpt).code == 250
        link.hops[peer.name].wait_for(transaction)
    records = {r["record_type"]: r for r in of_message(link, ids[1], "MMO4FRq", "MMO4FRs", "MMO4D", "MMO4R")}
    assert records["MMO4FRs"]["request_status"] == "Ok"
    assert (records["MMO4D"]["mm_status"], records["MMO4D"]["read_status"]) == ("Retrieved", None)
    assert (records["MMO4R"]["mm_status"], records["MMO4R"]["read_status"]) == (None, "Read")
    # Whose message it is does not depend on who speaks of it.
    assert {(r["originator"], r["recipient"], r["peer"]) for r in records.values()} == {(OURS, peer.number, peer.name)}


@PEERS
def test_what_comes_in_and_what_we_report_of_it(link: Link, peer: Peer) -> None:
    ids = came_from(link, peer)
    (forward,) = of_message(link, ids[1], "MMR4F")
    assert (forward["request_status"], forward["transaction_id"]) == ("Ok", ids[0])
    for kind in (DELIVERY, READ):
        transaction, content = report(NORTH, kind, ids[1], OURS, peer.number, "mmsc@mmsc.gw.example")
        rcpt = (f"{peer.number}/TYPE=PLMN@{peer.domain}",)
        assert link.gateway.send(content, source=LOCAL, mail_from=OUR_SYSTEM, rcpt=rcpt).code == 250
        (mail,) = link.hops[peer.name].wait_for(transaction)
        answer(link, peer, mail, kind, "Ok" if kind == DELIVERY else "Error-message-not-found")
    types = ("MMR4F", "MMR4DRq", "MMR4DRs", "MMR4RRq", "MMR4RRs")
    records = {r["record_type"]: r for r in of_message(link, ids[1], *types)}
    assert {name: r["request_status"] for name, r in records.items()} == {
        "MMR4F": "Ok", "MMR4DRq": None, "MMR4DRs": "Ok", "MMR4RRq": None, "MMR4RRs": "Error-message-not-found",
    }  # fmt: skip
    assert (records["MMR4DRs"]["mm_status"], records["MMR4RRs"]["read_status"]) == ("Retrieved", "Read")
    assert {(r["originator"], r["recipient"], r["peer"]) for r in records.values()} == {(peer.number, OURS, peer.name)}


def test_a_message_in_transit_is_charged_on_both_sides(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    content = forward_req(ids=ids, sender=NORTH.number, to=SOUTH.number)
    rcpt = (f"{SOUTH.number}/TYPE=PLMN@mms.gw.example",)
    sender = f"{NORTH.number}/TYPE=PLMN@{NORTH.domain}"
    assert link.gateway.send(content, source=NORTH.source, mail_from=sender, rcpt=rcpt).code == 250
    (mail,) = link.south.wait_for(ids[1])
    answer(link, SOUTH, mail, FORWARD)
    records = of_message(link, ids[1], "MMR4F", "MMO4FRq", "MMO4FRs")
    assert {(r["record_type"], r["peer"]) for r in records} == {
        ("MMR4F", "north"), ("MMO4FRq", "south"), ("MMO4FRs", "south")
    }  # fmt: skip


def test_what_was_refused_is_not_charged(link: Link) -> None:
    ids = new_ids(NORTH.domain)
    content = forward_req(ids=ids, sender=NORTH.number, ack="No", drop=("X-Mms-Message-ID",))
    dialogue = link.gateway.send(content, source=NORTH.source, mail_from=f"{NORTH.number}/TYPE=PLMN@{NORTH.domain}")
    assert dialogue.data is not None
    assert dialogue.data[0] >= 500
    assert [r for r in exported(link) if r["transaction_id"] == ids[0]] == []


def test_what_postfix_refuses_after_our_verdict_is_not_charged() -> None:
    later = Path(__file__).parents[1] / "t-10-later-milter" / "later.py"
    with Link(YAML, cdr=ON) as made:
        gateway = made.gateway
        socket = gateway.folder / "later.sock"
        process = subprocess.Popen([sys.executable, str(later), str(socket)])
        try:
            wait_for(socket.exists, "the second milter's socket")
            master = Path(gateway.facts["config_directory"]) / "master.cf"
            text = master.read_text()
            assert text.count("content_timeout=60s }") == 1
            master.write_text(text.replace("content_timeout=60s }", f"content_timeout=60s }}, unix:{socket}"))
            gateway.postfix("postfix", "reload")
            ids: list[str] = []

            def refused() -> bool:
                # Until smtpd is started anew a message meets our milter alone.
                ids[:] = new_ids(NORTH.domain)
                content = forward_req(ids=(ids[0], ids[1]), sender=NORTH.number, extra=(("X-Test-Later", "554"),))
                sender = f"{NORTH.number}/TYPE=PLMN@{NORTH.domain}"
                return gateway.send(content, source=NORTH.source, mail_from=sender).code == 554

            wait_for(refused, "the second milter's verdict")
            came_from(made, NORTH)  # whatever came before it has had its time
            gateway.quiet()
            assert {t["state"] for t in gateway.trace(ids[0])} == {"recorded"}
            found = exported(made)
            assert "MMR4F" in {r["record_type"] for r in found}
            assert [r for r in found if r["transaction_id"] == ids[0]] == []
        finally:
            process.kill()
            process.wait(20)


def test_the_files_hold_each_record_once_through_kills(link: Link) -> None:
    for _ in range(3):
        sent_to(link, NORTH)
        came_from(link, SOUTH)
        (responder,) = link.gateway.children("answerer")
        os.kill(responder, signal.SIGKILL)
        wait_for(lambda gone=responder: link.gateway.children("answerer") not in ([], [gone]), "another responder")
    link.gateway.quiet()
    everything = exported(link)
    wait_for(lambda: len(filed(link)) >= len(everything), "all records in files")
    assert Counter(r["sequence_number"] for r in filed(link)) == Counter(r["sequence_number"] for r in everything)
    assert filed(link) == everything
    assert {r["record_type"] for r in everything} == {kind.name for kind in RECORD_TYPES}
    assert [p.name for p in folder(link).glob(".*.part")] == []


def test_without_the_key_there_is_neither_row_nor_file() -> None:
    with Link(YAML, cdr="") as off:
        _, mail = sent_to(off, NORTH)
        answer(off, NORTH, mail, FORWARD)
        came_from(off, SOUTH)
        off.gateway.quiet()
        assert exported(off) == []
        assert list(off.gateway.folder.rglob("cdr")) == []

"""What the gateway sends back for every REQ of the corpus that asks for an ack.

The very Session that Postfix drives takes each case from a peer of the case's dialect, in an envelope of that
peer's domains. The RES carries the status that stands in the case's JSON, and both ids as they were.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fake import CONFIG, NOW, Gateway, Headers, Ledger, Seen
from mm4.gateway.names import strip_via
from mm4.gateway.reports import REPORTS
from mm4.gateway.verdict import Action
from mm4.protocol.dialect import builtin
from mm4.protocol.headers import split, unfold
from mm4.protocol.pdu import Pdu
from mm4.protocol.reader import read_message
from mm4.protocol.transaction import Direction, Original, State
from mm4.protocol.values import Unreadable, read_id

HERE = Path(__file__).parent

# Every domain that an originator system or a Sender of the corpus names.
DOMAINS = ("mms.north.example", "mms.south.example", "mms.mbuni.example", "mms.mnc006.mcc260.gprs", "mm4.tyntec.example")
SENDER = "<+447700900002/TYPE=PLMN@mms.north.example>"


def wanted(message: Path) -> dict[str, Any]:
    return dict(json.loads(message.with_suffix(".json").read_text("utf-8")))


def dialect_of(message: Path) -> str:
    return str(wanted(message).get("dialect", "3gpp"))


@functools.cache
def read(message: Path) -> Pdu:
    return read_message(message.read_bytes(), dialect_of(message))


def is_judged(message: Path) -> bool:
    pdu = read(message)
    return pdu.mm4 and not pdu.is_answer


CASES = sorted(filter(is_judged, HERE.glob("*/*.eml")), key=lambda p: int(p.name.partition("-")[0]))
ASKING = [c for c in CASES if read(c).ack_request]
SILENT = [c for c in CASES if not read(c).ack_request]
DIALECTS = sorted({dialect_of(c) for c in HERE.glob("*/*.eml")})


@functools.cache
def config() -> str:
    """The gateway's configuration with one peer for each dialect of the corpus."""
    peers = "".join(
        f"  speaks-{name}:\n    dialect: {name}\n    domains: [{', '.join(DOMAINS)}]\n"
        f"    networks: [203.0.113.{50 + i}/32]\n    next_hop: '[203.0.113.{50 + i}]:25'\n"
        f"    system_address: system@mm4.tyntec.example\n"
        for i, name in enumerate(DIALECTS)
    )
    return re.sub(r"\npeers:\n.*?(?=\nroutes:)", "\npeers:\n" + peers.rstrip(), CONFIG, flags=re.DOTALL).partition("routes:")[0]


def about(message: Path) -> list[Original]:
    """The message that a report is about, as it went to the peer that reports; nothing for what is no report."""
    pdu = read(message)
    reporter, message_id = pdu.get("sender"), pdu.get("message_id")
    if pdu.type not in REPORTS or reporter is None or message_id is None:
        return []
    return [
        Original(
            Direction.OUT, f"speaks-{dialect_of(message)}", "local", "t-1", message_id, "+491511000001", reporter.key,
            State.ANSWERED, True, True, NOW,
        )
    ]  # fmt: skip


def taken(message: Path, *, known: bool = True) -> Seen:
    """The case as it comes from its peer; a report is about a message that is `known`, or not."""
    client = f"203.0.113.{50 + DIALECTS.index(dialect_of(message))}"
    lines: Headers = [(h.name, h.value) for h in split(message.read_bytes())[0]]
    ledger = Ledger()
    ledger.history = about(message) if known else []
    return Gateway(config(), ledger).peer(client).mail(SENDER).rcpt().headers(lines).end()


def echo(pdu: Pdu, field: str) -> bytes | None:
    """The id as it stood in the first line that can be read; None where none can."""
    for place in pdu.found.get(field, ()):
        try:
            read_id(place.raw.decode("latin-1"))
        except Unreadable:
            continue
        return place.raw
    return None


def of(message: bytes, name: str) -> bytes | None:
    found = [unfold(h.value) for h in split(message)[0] if h.name == name]
    assert len(found) <= 1, name
    return found[0] if found else None


@pytest.mark.parametrize("message", ASKING, ids=lambda p: p.stem)
def test_the_res_says_what_the_case_says(message: Path) -> None:
    seen, request, said = taken(message), read(message), wanted(message)
    assert seen.verdict.action is Action.ACCEPT
    (answer,) = seen.verdict.answers
    assert answer.status == said["status"]
    assert strip_via(answer.rcpt_to).rpartition("@")[2].lower() in DOMAINS
    # Delivered exactly where it is valid.
    delivered = [a for a, _ in seen.verdict.added if a.endswith("@mmsc.gw.example")]
    assert bool(delivered) is said["valid"]
    # Both ids byte for byte; one that cannot be read is not written back.
    ids = {name: echo(request, name) for name in ("transaction_id", "message_id")}
    for name, raw in ids.items():
        assert of(answer.message, builtin(dialect_of(message)).fields[name].header) == raw
    # The peer reads it without a warning, in its own dialect.
    back = read_message(answer.message, dialect_of(message))
    tables = builtin(dialect_of(message))
    kind = tables.answer_type(request.type or "MM4_forward.REQ") or ""
    assert (back.type, back.get("status_code")) == (kind, said["status"])
    demanded = {row.field for row in tables.pdus[kind] if row.presence == "mandatory"}
    lacking = {(name, "mandatory") for name, raw in ids.items() if raw is None and name in demanded}
    assert {(p.field, p.rule) for p in back.problems} == lacking


@pytest.mark.parametrize("message", [c for c in CASES if read(c).type in REPORTS], ids=lambda p: p.stem)
def test_a_report_about_an_unknown_message_is_answered_so(message: Path) -> None:
    said, verdict = wanted(message), taken(message, known=False).verdict
    status = "Error-message-not-found" if said["valid"] else said["status"]
    assert verdict.status == status
    assert [answer.status for answer in verdict.answers] == ([status] if read(message).ack_request else [])


@pytest.mark.parametrize("message", SILENT, ids=lambda p: p.stem)
def test_who_asks_for_no_ack_gets_none(message: Path) -> None:
    verdict, said = taken(message).verdict, wanted(message)
    assert verdict.answers == ()
    assert verdict.status == said["status"]
    assert verdict.action is (Action.ACCEPT if said["valid"] else Action.REJECT)


def test_the_corpus_asks_for_every_status_that_reading_alone_can_give() -> None:
    assert {wanted(c)["status"] for c in ASKING} == {
        "Ok", "Error-message-format-corrupt", "Error-unsupported-message", "Error-sending-address-unresolved"
    }  # fmt: skip
    assert len(ASKING) > 100
    assert len(SILENT) > 5


ANSWERS = [c for c in sorted(HERE.glob("*/*.eml")) if read(c).mm4 and read(c).is_answer]


@pytest.mark.parametrize("message", ANSWERS, ids=lambda p: p.stem)
def test_a_res_ends_here_and_is_never_answered(message: Path) -> None:
    said = wanted(message)
    seen = taken(message)
    assert seen.verdict.answers == ()
    # One that says of which transaction it speaks, and what became of it, is taken whatever else is wrong with it.
    wrong = {problem.field for problem in read(message).errors}
    speaks = said["type"] is not None and not wrong & {None, "message_type", "transaction_id", "status_code"}
    assert seen.verdict.action is (Action.DISCARD if speaks else Action.REJECT)
    arrivals = seen.gateway.ledger.arrivals
    assert [a[1] for a in arrivals] == ([said["type"]] if speaks else [])

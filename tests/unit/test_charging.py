"""Charging records in the store: what makes one, and what makes none."""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import delete

import mm4.store.store as store_module
from fake import CONFIG
from mm4.cli.cdr import cdr
from mm4.protocol.charging import FIELDS, RECORD_TYPES, Record, written
from mm4.protocol.errors import StoreError
from mm4.protocol.retry import Retry
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.schema import charges

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
FORWARD, DELIVERY, READ = "MM4_forward.REQ", "MM4_delivery_report.REQ", "MM4_read_reply_report.REQ"
OURS, THEIRS = "+491511000001", "+447700900101"
IN, OUT = Direction.IN, Direction.OUT


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url, charging=True) as opened:
        yield opened


def mail(direction: Direction, kind: str, *recipients: str, ack: bool = True, peer: str = "north", **more: Any) -> Message:
    token = secrets.token_hex(16)
    changes = more.pop("transaction", {})
    # Who reports is the recipient of the message: a report goes against its way.
    sender = THEIRS if direction is IN else OURS
    default = OURS if direction is IN else THEIRS
    made = tuple(
        replace(
            Transaction(f"t-{token}", f"m-{token}", sender, to, ack_requested=ack, report=None if kind == FORWARD else "Read"),
            **changes,
        )
        for to in recipients or (default,)
    )
    answer = Answer("a@mms.north.example", "b@mms.gw.example", kind.replace("REQ", "RES"), "Ok", b"")
    if direction is OUT or not ack:
        answer = None
    return Message(token, direction, peer, kind, "4Q", "mx1", T0, made, more.pop("answer", answer), **more)


def taken(store: Store, message: Message, seconds: int = 1) -> Message:
    """Postfix has it, and the responder did what was due."""
    store.record(message).result(30)
    at = T0 + timedelta(seconds=seconds)
    if message.answer is None:
        store.accepted(message.token, at).result(30)
    else:
        store.answered(message.token, at, "4R").result(30)
    return message


def res(store: Store, message: Message, status: str = "Ok", seconds: int = 5, peer: str = "north") -> int:
    one, kind = message.transactions[0], message.type.replace("REQ", "RES")
    at = T0 + timedelta(seconds=seconds)
    return store.receive_answer(peer, kind, one.transaction_id, one.message_id, status, None, at, "4S", "mx1").result(30)


def made(store: Store) -> list[str]:
    return [record.record_type for record in store.charges.search()]


@pytest.mark.parametrize(
    ("direction", "kind", "answered", "types"),
    [
        (OUT, FORWARD, True, ["MMO4FRq", "MMO4FRs"]),
        (OUT, FORWARD, False, ["MMO4FRq"]),
        (IN, DELIVERY, False, ["MMO4D"]),
        (IN, READ, False, ["MMO4R"]),
        (IN, FORWARD, False, ["MMR4F"]),
        (OUT, DELIVERY, True, ["MMR4DRq", "MMR4DRs"]),
        (OUT, READ, True, ["MMR4RRq", "MMR4RRs"]),
    ],
)
def test_each_record_is_made_by_its_event(
    store: Store, direction: Direction, kind: str, answered: bool, types: list[str]
) -> None:
    message = mail(direction, kind)
    store.record(message).result(30)
    assert made(store) == []  # Postfix may refuse it yet
    taken_at = T0 + timedelta(seconds=1)
    if message.answer:
        store.answered(message.token, taken_at, "4R").result(30)
    else:
        store.accepted(message.token, taken_at).result(30)
    assert made(store) == types[:1]
    if answered:
        assert res(store, message) == 1
    assert made(store) == types


def test_a_record_says_all_that_is_known(store: Store) -> None:
    expires = T0 + timedelta(days=1)
    asked = {"delivery_report": True, "read_reply": True}
    sent = taken(store, mail(OUT, FORWARD, size=4711, expires_at=expires, transaction=asked))
    res(store, sent, "Error-service-denied")
    request, response = store.charges.search()
    one = sent.transactions[0]
    assert request == Record(
        1, "MMO4FRq", T0 + timedelta(seconds=1), T0, "north", OURS, THEIRS, one.message_id, one.transaction_id, 4711,
        expires, True, True, True, None, None, None, "4Q", "mx1", sent.token,
    )  # fmt: skip
    later = T0 + timedelta(seconds=5)
    status = "Error-service-denied"
    assert response == replace(request, sequence_number=2, record_type="MMO4FRs", record_time=later, request_status=status)


@pytest.mark.parametrize(("direction", "originator", "recipient"), [(IN, OURS, THEIRS), (OUT, THEIRS, OURS)])
@pytest.mark.parametrize(("kind", "field"), [(DELIVERY, "mm_status"), (READ, "read_status")])
def test_a_reports_record_names_the_messages_originator(
    store: Store, direction: Direction, kind: str, field: str, originator: str, recipient: str
) -> None:
    taken(store, mail(direction, kind))
    (record,) = store.charges.search()
    assert (record.originator, record.recipient) == (originator, recipient)
    assert {"mm_status", "read_status"} & {n for n in ("mm_status", "read_status") if getattr(record, n)} == {field}
    assert record.request_status == ("Ok" if direction is IN else None)


def test_each_recipient_has_a_record(store: Store) -> None:
    message = taken(store, mail(IN, FORWARD, OURS, "+491511000002"))
    assert [record.recipient for record in store.charges.search()] == [t.recipient for t in message.transactions]


def test_what_comes_twice_is_charged_once(store: Store) -> None:
    came, sent = taken(store, mail(IN, FORWARD)), taken(store, mail(OUT, FORWARD))
    res(store, sent, "Error-service-denied")
    for seconds in (6, 7):
        store.answered(came.token, T0 + timedelta(seconds=seconds), "4R").result(30)
        store.accepted(sent.token, T0 + timedelta(seconds=seconds)).result(30)
        res(store, sent, "Ok", seconds)
    found = list(store.charges.search())
    assert [record.record_type for record in found] == ["MMR4F", "MMO4FRq", "MMO4FRs"]
    assert found[2].request_status == "Error-service-denied"


PASSING = "Error-network-problem"
DUE = T0 + timedelta(minutes=10)


def answered(store: Store) -> list[str | None]:
    return [record.request_status for record in store.charges.search(type_="MMO4FRs")]


def waiting(store: Store) -> Message:
    """A message that went to a peer, whose RES is awaited."""
    return taken(store, mail(OUT, FORWARD, transaction={"due_at": DUE}))


def test_an_error_that_may_pass_is_charged_only_when_nothing_better_came(store: Store) -> None:
    sent = waiting(store)
    res(store, sent, PASSING)
    assert answered(store) == []
    res(store, sent, "Ok", 6)
    res(store, sent, "Error-service-denied", 7)
    assert answered(store) == ["Ok"]


def test_without_a_retry_an_error_that_may_pass_is_charged_when_its_time_is_over(store: Store) -> None:
    res(store, waiting(store), PASSING)
    store.overdue(DUE, 100, {}).result(30)
    assert answered(store) == [PASSING]
    (record,) = store.charges.search(type_="MMO4FRs")
    assert record.record_time == T0 + timedelta(seconds=5)


def test_an_error_that_lasts_is_charged_when_the_message_has_failed(store: Store) -> None:
    sent, retries = waiting(store), {"north": Retry(600, 1)}
    res(store, sent, PASSING)
    store.overdue(DUE, 100, retries).result(30)
    (late,) = store.claim(DUE, 8, retries, "mx1").result(30)[0]
    again = DUE + timedelta(minutes=20)
    store.sent_again(late, DUE, "4B", again).result(30)
    assert answered(store) == []
    store.overdue(again, 100, retries).result(30)
    (failed,) = store.claim(again, 8, retries, "mx1").result(30)[0]
    assert failed.state is State.FAILED
    assert answered(store) == [PASSING]
    res(store, sent, "Ok", 3600)
    assert answered(store) == [PASSING]


@pytest.mark.parametrize("end", ["no copy", "no retry", "bounce"])
def test_an_error_that_may_pass_is_charged_whatever_ends_the_wait(store: Store, end: str) -> None:
    sent, retries = waiting(store), {"north": Retry(600, 1)}
    res(store, sent, PASSING)
    if end == "bounce":
        store.bounced(sent.token, None, "5.1.1", "no", DUE, None).result(30)
    else:
        store.overdue(DUE, 100, retries).result(30)
        assert answered(store) == []
        claimed = store.claim(DUE, 8, retries if end == "no copy" else {}, "mx1").result(30)[0]
        for late in claimed:
            store.not_sent(late, DUE, "no copy was kept", None).result(30)
    assert answered(store) == [PASSING]


def test_what_was_never_answered_is_not_charged_as_answered(store: Store) -> None:
    sent = waiting(store)
    store.overdue(DUE, 100, {"north": Retry(600, 1)}).result(30)
    store.claim(DUE, 8, {}, "mx1").result(30)
    store.bounced(sent.token, None, "5.1.1", "no", DUE, None).result(30)
    assert answered(store) == []


@pytest.mark.parametrize("kind", [DELIVERY, READ, FORWARD])
def test_what_we_tell_our_mmsc_ourselves_is_no_report_of_a_peer(store: Store, kind: str) -> None:
    taken(store, mail(IN, kind, source="local"))
    taken(store, mail(IN, kind, source="north"))
    assert len(made(store)) == 1


def test_a_message_that_is_accepted_before_it_is_answered_is_charged_once(store: Store) -> None:
    message = mail(IN, FORWARD)
    store.record(message).result(30)
    store.accepted(message.token, T0 + timedelta(seconds=1)).result(30)
    store.answered(message.token, T0 + timedelta(seconds=2), "4R").result(30)
    assert made(store) == ["MMR4F"]


def test_a_res_that_is_quicker_than_the_responder_is_charged(store: Store) -> None:
    message = mail(OUT, FORWARD)
    store.record(message).result(30)
    res(store, message)
    assert made(store) == ["MMO4FRs"]
    store.accepted(message.token, T0 + timedelta(seconds=6)).result(30)
    assert made(store) == ["MMO4FRs", "MMO4FRq"]


@pytest.mark.parametrize("state", [State.DUPLICATE, State.SUPPRESSED])
@pytest.mark.parametrize("kind", [FORWARD, DELIVERY])
def test_what_goes_to_nobody_is_not_charged(store: Store, state: State, kind: str) -> None:
    taken(store, mail(IN, kind, transaction={"state": state}))
    assert made(store) == []


def test_a_duplicate_is_not_charged_whatever_its_state(store: Store) -> None:
    first = taken(store, mail(IN, FORWARD))
    taken(store, mail(IN, FORWARD, copy_of=first.token))
    assert made(store) == ["MMR4F"]


def test_a_refused_forward_has_its_error_and_a_refused_report_no_record(store: Store) -> None:
    refused = {"state": State.REFUSED, "status": "Error-service-denied"}
    answer = Answer("a@mms.north.example", "b@mms.gw.example", "MM4_forward.RES", "Error-service-denied", b"")
    taken(store, mail(IN, FORWARD, transaction=refused, answer=answer))
    taken(store, mail(IN, DELIVERY, transaction=refused, answer=answer))
    assert [(r.record_type, r.request_status) for r in store.charges.search()] == [("MMR4F", "Error-service-denied")]


def test_what_another_peer_answers_is_not_charged(store: Store) -> None:
    sent = taken(store, mail(OUT, FORWARD))
    assert res(store, sent, peer="south") == 0
    assert made(store) == ["MMO4FRq"]


def test_a_message_in_transit_is_charged_on_both_sides(store: Store) -> None:
    answer = Answer("a@mms.north.example", "b@mms.gw.example", "MM4_forward.RES", "Ok", b"")
    taken(store, mail(OUT, FORWARD, peer="south", source="north", answer=answer))
    assert [(r.record_type, r.peer, r.request_status) for r in store.charges.search()] == [
        ("MMO4FRq", "south", None),
        ("MMR4F", "north", "Ok"),
    ]


@pytest.mark.parametrize("kind", [DELIVERY, READ])
def test_a_report_in_transit_is_charged_on_both_sides(store: Store, kind: str) -> None:
    taken(store, mail(OUT, kind, peer="north", source="south"))
    types = {DELIVERY: ("MMR4DRq", "MMO4D"), READ: ("MMR4RRq", "MMO4R")}[kind]
    assert [(r.record_type, r.peer) for r in store.charges.search()] == [(types[0], "north"), (types[1], "south")]


def test_records_that_are_not_wanted_are_not_made(store_url: str) -> None:
    with Store.open(store_url) as off:
        for message in [mail(d, k) for d in (IN, OUT) for k in (FORWARD, DELIVERY, READ)]:
            taken(off, message)
            res(off, message)
        assert made(off) == []
    # Switched on later, they are made of what happens from then on.
    with Store.open(store_url, charging=True) as on:
        if message.answer is None:
            on.accepted(message.token, T0 + timedelta(minutes=1)).result(30)
        assert made(on) == []
        taken(on, mail(OUT, FORWARD))
        assert made(on) == ["MMO4FRq"]


def test_a_transition_whose_record_fails_does_not_happen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    message = mail(OUT, FORWARD)
    store.record(message).result(30)
    with monkeypatch.context() as broken:
        broken.setattr(store_module, "charge_accepted", fail)
        with pytest.raises(StoreError, match="a fault of ours"):
            store.accepted(message.token, T0).result(30)
    kept = store.message(message.token)
    assert kept is not None
    assert kept.accepted_at is None
    store.accepted(message.token, T0).result(30)
    assert made(store) == ["MMO4FRq"]


def test_a_record_outlives_its_transaction_and_no_number_comes_twice(store: Store) -> None:
    sent = taken(store, mail(OUT, FORWARD))
    store.forget(sent.token, force=True).result(30)
    assert made(store) == ["MMO4FRq"]
    assert store._writer is not None
    store._writer.submit(lambda connection: connection.execute(delete(charges))).result(30)
    taken(store, mail(OUT, FORWARD))
    assert [record.sequence_number for record in store.charges.search()] == [2]


def test_the_search_narrows_and_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm4.store.charges._PAGE", 3)
    for number in range(10):
        taken(store, mail((IN, OUT)[number % 2], FORWARD, peer=("north", "south")[number % 5 == 0]), number)
    assert [r.sequence_number for r in store.charges.search()] == list(range(1, 11))
    assert {r.record_type for r in store.charges.search(type_="MMR4F")} == {"MMR4F"}
    assert [r.sequence_number for r in store.charges.search(peer="south")] == [1, 6]
    since, until = T0 + timedelta(seconds=2), T0 + timedelta(seconds=5)
    assert [r.sequence_number for r in store.charges.search(since=since, until=until)] == [3, 4, 5]


# -- how a record is written

STRANGE = 'a"b,c\n=1+1 é'


def sample(**change: Any) -> Record:
    return replace(
        Record(
            7, "MMR4F", T0, T0, "north", OURS, THEIRS, "m-1", "t-1", None, None, True, False, False, "Ok", None, None,
            "4Q", "mx1", "ab" * 16,
        ),
        **change,
    )  # fmt: skip


def test_json_lines_hold_every_field_and_any_text() -> None:
    (line,) = written([sample(message_id=STRANGE)], "jsonl")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value = json.loads(line)
    assert list(value) == [field.name for field in fields(Record)]
    assert (value["message_id"], value["message_size"], value["ack_requested"]) == (STRANGE, None, True)
    assert value["record_time"] == "2026-11-22T10:00:00+00:00"


def test_csv_holds_every_field_and_any_text() -> None:
    text = b"".join(written([sample(message_id=STRANGE), sample()], "csv")).decode()
    one, two = csv.DictReader(io.StringIO(text, newline=""))
    assert list(one) == [field.name for field in fields(Record)]
    assert (one["message_id"], two["message_id"]) == (STRANGE, "m-1")
    assert (one["message_size"], one["ack_requested"], one["read_status"]) == ("", "yes", "")
    assert one["record_time"] == "2026-11-22T10:00:00+00:00"


# -- mm4 cdr export


@pytest.fixture
def exported(store: Store, store_url: str, tmp_path: Path) -> Any:
    config = tmp_path / "mm4.yaml"
    config.write_text(CONFIG + f"store: {store_url}\n")
    return lambda *arguments: CliRunner().invoke(cdr, ["export", "--config", str(config), *arguments], standalone_mode=False)


def test_export_prints_the_records_and_changes_nothing(store: Store, exported: Any) -> None:
    for _ in range(2):
        done = exported()
        assert (done.return_value, done.stdout) == (1, "")
    res(store, taken(store, mail(OUT, FORWARD)))
    taken(store, mail(IN, FORWARD, peer="hub"))
    for _ in range(2):
        done = exported()
        assert done.return_value == 0
        assert [json.loads(line)["record_type"] for line in done.stdout.splitlines()] == ["MMO4FRq", "MMO4FRs", "MMR4F"]
    done = exported("--format", "csv", "--peer", "hub")
    assert [row["record_type"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["MMR4F"]
    done = exported("--type", "mmo4frs", "--since", "2026-11-22T10:00:05Z", "--until", "2026-11-22T10:00:06Z")
    assert [json.loads(line)["record_type"] for line in done.stdout.splitlines()] == ["MMO4FRs"]
    done = exported("--format", "csv", "--peer", "nobody")
    assert (done.return_value, done.stdout.count("\n")) == (1, 1)


# -- docs/charging.md

PAGE = (Path(__file__).parents[2] / "docs" / "charging.md").read_text("utf-8")


def part(head: str) -> list[list[str]]:
    _, found, rest = PAGE.partition(f"\n## {head}\n")
    assert found
    lines = [line for line in re.split(r"\n## ", rest, maxsplit=1)[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_the_page_has_the_records_of_the_code() -> None:
    rows = [(cells[0].strip("`"), int(cells[1]), cells[2].strip("`"), cells[3]) for cells in part("The records")]
    assert rows == [(kind.name, kind.number, kind.request, kind.event) for kind in RECORD_TYPES]


def test_the_page_has_the_fields_of_the_code() -> None:
    rows = [(cells[0].strip("`"), None if cells[1] == "ours" else cells[1]) for cells in part("The fields")]
    assert rows == [(field.name, field.ts_32_270) for field in FIELDS]
    assert [field.name for field in FIELDS] == [field.name for field in fields(Record)]

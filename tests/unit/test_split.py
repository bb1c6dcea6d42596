"""One message to several sides: what each gets, what is kept of it, and how the responder makes it."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake import CONFIG, NOW, QUEUE_ID, TOKEN, Gateway, Headers, Ledger, Seen, applied, req
from mm4.gateway.configfile import parse_config
from mm4.gateway.edits import Edit, in_order, rewritten, undoing
from mm4.gateway.routing import Router
from mm4.gateway.verdict import Action
from mm4.postfix.lmtp import Envelope
from mm4.postfix.mailqueue import queued
from mm4.postfix.responder import TOKEN_BYTES, Responder
from mm4.postfix.spool import Spool
from mm4.protocol.errors import StoreError, SubmissionError
from mm4.protocol.headers import Header
from mm4.protocol.transaction import Answer, Direction, Message, Recording, Split, State, Transaction
from mm4.store import Store

NORTH, TYNTEC, HUB, OWN = "+447700900101", "+447700900201", "+34600000001", "+491511000001"
OUR = "<+491511000001/TYPE=PLMN@mms.gw.example>"
TOP = f"Received: from mmsc (mmsc [127.0.0.1])\r\n\tby gw.example (Postfix) with ESMTP id {QUEUE_ID}\r\n\tfor <x>;\r\n"
BODY = b"--b1\r\n\r\n\xff.\r\nSubject: no header\r\n--b1--\r\n"


def local_req(**change: Any) -> Headers:
    """A REQ of our own MMSC, which names its fields as 3GPP does and holds what is easily lost."""
    lines = req(
        From="+491511000001/TYPE=PLMN", Sender="+491511000001/TYPE=PLMN@mms.gw.example", To="+447700900101, +447700900201",
        X_Mms_Originator_System="mmsc@mms.gw.example", **change,
    )  # fmt: skip
    odd = [("Subject", b"caf\xe9\n\tand more"), ("X-Any", b"1"), ("x-any", b" 2 "), ("X-Mms-Forwarded-By", b"+447700900003")]
    return [*lines[:4], *odd, *lines[4:]]


def to(*numbers: str) -> list[str]:
    return [f"<{number}/TYPE=PLMN@mms.gw.example>" for number in numbers]


def send(*numbers: str, client: str = "local", lines: Headers | None = None, config: str = CONFIG, ledger: Ledger | None = None) -> Seen:
    seen = Gateway(config, ledger).peer(client).mail(OUR if client == "local" else f"<a@mms.{client}.example>").rcpt(*to(*numbers))
    return seen.headers(local_req() if lines is None else lines).end()


def block(lines: Headers) -> bytes:
    return b"".join(n.encode() + b": " + v.replace(b"\n", b"\r\n") + b"\r\n" for n, v in lines)


def made(seen: Seen, part: int) -> bytes:
    """What the responder makes for a further side, of what Postfix makes for the first."""
    record = seen.verdict.splits[part].record
    assert record.split is not None
    first = block(seen.edited()) + b"\r\n" + BODY
    return rewritten(first, (Edit(*edit) for edit in record.split.edits))


# -- edits

names = st.sampled_from(["To", "to", "X-A", "X-a", "Subject", "Received"])
values = st.binary(min_size=1, max_size=8).map(lambda b: b.replace(b"\r", b"").replace(b"\0", b"").replace(b"\n", b"\n\t") or b"v")
blocks = st.lists(st.tuples(names, values), min_size=1, max_size=12)


@given(blocks, st.data())
def test_what_was_done_for_the_first_side_is_undone_to_the_byte(lines: Headers, data: st.DataObject) -> None:
    places = [(n, sum(m.lower() == n.lower() for m, _ in lines[: i + 1])) for i, (n, _) in enumerate(lines)]
    touched = data.draw(st.lists(st.sampled_from(places), unique=True, max_size=6))
    edits = [
        Edit("delete", name, occurrence) if data.draw(st.booleans()) else Edit("change", name, occurrence, "new\n value")
        for name, occurrence in touched
    ]
    edits += [Edit("add", name, 0, "added") for name in data.draw(st.lists(names, max_size=3))]
    edits = in_order(edits)
    back = undoing(edits, [Header(n, v) for n, v in lines])
    edited = block(applied(lines, edits)) + b"\r\n" + BODY
    assert rewritten(edited, back) == block(lines) + b"\r\n" + BODY
    # And the edits as such are Postfix's.
    assert rewritten(block(lines) + b"\r\n" + BODY, edits) == edited


def test_lines_that_are_not_touched_stay_byte_for_byte() -> None:
    message = b"X-A:1\r\nX-B :  2 \r\n\t3\r\nX-C:\t\xe9\r\n\r\nX-A: body\r\n"
    edits = [Edit("change", "x-c", 1, "new"), Edit("add", "X-D", 0, "a\n b")]
    assert rewritten(message, edits) == b"X-A:1\r\nX-B :  2 \r\n\t3\r\nx-c: new\r\nX-D: a\r\n b\r\n\r\nX-A: body\r\n"
    # Where no empty line ends the header, the first line that is no header does.
    assert rewritten(b"X-A:1\r\nno header\r\n", [Edit("add", "X-B", 0, "2")]) == b"X-A:1\r\nX-B: 2\r\nno header\r\n"


# -- the verdict


def test_each_side_gets_its_own_edits_envelope_and_record() -> None:
    seen = send(TYNTEC, NORTH, OWN, HUB, "+447700900102")
    verdict = seen.verdict
    assert (verdict.action, str(verdict.reply)) == (Action.ACCEPT, "250 2.0.0 Ok")
    tokens = [part.record.token for part in verdict.splits]
    assert verdict.added == (
        (f"{TYNTEC}/TYPE=PLMN@mm4.tyntec.example.via-tyntec.mm4.invalid", "NOTIFY=FAILURE"),
        (f"{TOKEN}@responder.mm4.invalid", "NOTIFY=NEVER"),
        *((f"{token}.split@responder.mm4.invalid", "NOTIFY=FAILURE") for token in tokens),
    )
    assert len({TOKEN, *tokens}) == 4
    assert sorted(verdict.deleted) == sorted(to(TYNTEC, NORTH, OWN, HUB, "+447700900102"))
    assert [m.token for m in seen.gateway.ledger.messages] == [TOKEN, *tokens]
    assert [[t.recipient for t in m.transactions] for m in seen.gateway.ledger.messages] == [
        [TYNTEC], [NORTH, "+447700900102"], [OWN], [HUB],
    ]  # fmt: skip
    assert [(m.direction, m.peer, m.queue_id, m.split_of) for m in seen.gateway.ledger.messages] == [
        (Direction.OUT, "tyntec", QUEUE_ID, None), (Direction.OUT, "north", "", TOKEN),
        (Direction.IN, "local", "", TOKEN), (Direction.OUT, "hub", "", TOKEN),
    ]  # fmt: skip
    north, own, hub = (part.record.split for part in verdict.splits)
    assert north is not None
    assert own is not None
    assert hub is not None
    assert (north.carrier, north.mail_from) == (QUEUE_ID, "+491511000001/TYPE=PLMN@mms.gw.example")
    assert (own.mail_from, own.recipients) == (f"{tokens[1]}@mms.gw.example", ((OWN, "+491511000001@mmsc.gw.example"),))
    assert hub.recipients == ((HUB, f"{HUB}/TYPE=PLMN@mms.hub.example.via-hub.mm4.invalid"),)


@pytest.mark.parametrize("order", [(NORTH, TYNTEC, OWN), (OWN, NORTH, TYNTEC), (TYNTEC, OWN, NORTH)])
def test_the_header_of_each_side_is_that_of_a_message_to_it_alone(order: tuple[str, ...]) -> None:
    seen = send(*order)
    for part, number in enumerate(order[1:]):
        assert made(seen, part) == block(send(number).edited()) + b"\r\n" + BODY
    assert seen.edited() == send(order[0]).edited()


def test_ids_that_are_made_are_one_messages_on_every_side() -> None:
    seen = send(NORTH, TYNTEC, lines=[line for line in local_req() if not line[0].endswith(("-Transaction-ID", "-Message-ID"))])
    ids = {(t.transaction_id, t.message_id) for m in seen.gateway.ledger.messages for t in m.transactions}
    assert len(ids) == 1
    assert TOKEN not in str(ids)
    assert next(iter(ids))[0].encode() in made(seen, 0)


def test_one_peers_dialect_that_cannot_be_written_refuses_the_whole() -> None:
    lines = local_req(X_Mms_MM_Status_Code=None)
    long = [("X-Mms-Message-Type", v) if n == "X-Mms-Message-Type" else (n, v) for n, v in lines]
    long = [(n, b"x" * 60_000 + v if n == "X-Mms-3GPP-MMS-Version" else v) for n, v in long]
    seen = send(NORTH, TYNTEC, lines=long)
    assert seen.verdict.action is Action.REJECT
    assert seen.reply.code == 554
    assert seen.gateway.ledger.messages == []
    assert seen.verdict.splits == ()


TRANSIT = CONFIG.replace("    max_size: 1MB\n", "    transit: yes\n")


@pytest.mark.parametrize("order", [(OWN, TYNTEC), (TYNTEC, OWN)])
def test_a_peer_gets_one_res_for_all_that_it_asked_for(order: tuple[str, ...]) -> None:
    seen = send(*order, client="north", lines=req(), config=TRANSIT)
    (answer,) = seen.verdict.answers
    assert (answer.status, answer.rcpt_to) == ("Ok", "PostMaster@mms.north.example.via-north.mm4.invalid")
    assert [m.answer for m in seen.gateway.ledger.messages] == [answer, None]
    assert [m.reply_to for m in seen.gateway.ledger.messages] == [None, None]


@pytest.mark.parametrize(("order", "held"), [((OWN, TYNTEC), 0), ((TYNTEC, OWN), 1)])
def test_a_res_that_waits_for_the_mmsc_waits_with_our_side(order: tuple[str, ...], held: int) -> None:
    config = TRANSIT.replace("    transit: yes\n", "    transit: yes\n    answers: mmsc\n")
    seen = send(*order, client="north", lines=req(), config=config)
    assert seen.verdict.answers == ()
    assert [m.reply_to for m in seen.gateway.ledger.messages] == [
        "PostMaster@mms.north.example" if i == held else None for i in range(2)
    ]
    assert [m.answer is not None for m in seen.gateway.ledger.messages] == [i == held for i in range(2)]


def test_our_identities_are_sides_of_their_own() -> None:
    mvno = """\
  - domain: mms.mvno.example
    system_address: system-user@mms.mvno.example
    numbers: ["+491512"]
    clients: [127.0.0.2/32]
    deliver_to: "{number}@mmsc.gw.example"
    next_hop: "[127.0.0.1]:2600"
"""
    first, _, rest = CONFIG.partition("peers:\n")
    config = "local:\n  - " + first.removeprefix("local:\n").replace("\n  ", "\n    ").strip() + f"\n{mvno}peers:\n{rest}"
    seen = send(OWN, "+491512000001", client="north", lines=req(), config=config)
    (part,) = seen.verdict.splits
    assert part.record.split is not None
    assert part.record.split.mail_from == f"{part.record.token}@mms.mvno.example"
    assert seen.verdict.mail_from == f"{TOKEN}@mms.gw.example"


def test_a_store_that_does_not_commit_in_time_forgets_every_part() -> None:
    ledger = Ledger(StoreError("no"))
    seen = send(NORTH, TYNTEC, ledger=ledger)
    assert seen.reply.code == 451
    assert ledger.withdrawn == [m.token for m in ledger.messages]
    assert len(ledger.withdrawn) == 2


@pytest.mark.parametrize(
    ("repeated", "goes_to"),
    [
        ((), {"first", "split"}), ((OWN,), {"split"}), ((TYNTEC,), {"first"}), ((OWN, TYNTEC), set()),
    ],
)  # fmt: skip
def test_a_duplicate_goes_to_the_sides_that_have_it_not(repeated: tuple[str, ...], goes_to: set[str]) -> None:
    ledger = Ledger()
    before = Answer("a@mms.north.example", "", "MM4_forward.RES", "Ok", b"before")
    ledger.found = Recording(repeated=repeated, answer=before if OWN in repeated else None)
    verdict = send(OWN, TYNTEC, client="north", lines=req(), config=TRANSIT, ledger=ledger).verdict
    added = [address for address, _ in verdict.added]
    assert ({"first"} if "+491511000001@mmsc.gw.example" in added else set()) | (
        {"split"} if any(".split@" in address for address in added) else set()
    ) == goes_to
    assert f"{TOKEN}@responder.mm4.invalid" in added
    assert len(verdict.answers) == 1
    assert (verdict.answers[0] == before) is (OWN in repeated)


# -- the store


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as opened:
        yield opened


def parts(seen: Seen) -> tuple[Message, list[Message]]:
    assert seen.verdict.record is not None
    return seen.verdict.record, [part.record for part in seen.verdict.splits]


def test_all_parts_are_kept_and_come_back_as_they_were(store: Store) -> None:
    first, splits = parts(send(TYNTEC, NORTH, OWN))
    assert store.record(first, None, splits).result(30) == Recording()
    assert [store.message(part.token) for part in (first, *splits)] == [first, *splits]


def test_all_parts_are_kept_or_none(store: Store) -> None:
    first, splits = parts(send(TYNTEC, NORTH, OWN))
    store.record(splits[1]).result(30)
    with pytest.raises(StoreError):
        store.record(first, None, splits).result(30)
    assert store.message(first.token) is store.message(splits[0].token) is None


def test_a_part_has_the_queue_id_of_its_own_mail_and_is_found_by_both(store: Store) -> None:
    first, splits = parts(send(TYNTEC, NORTH))
    store.record(first, None, splits).result(30)
    store.accepted(first.token, NOW).result(30)
    assert [t["queue_id"] for t in store.trace(QUEUE_ID)] == [QUEUE_ID, ""]
    assert [t["state"] for t in store.trace(QUEUE_ID)] == ["waiting", "recorded"]
    store.accepted(splits[0].token, NOW, "4SPLIT").result(30)
    assert [t["recipient"] for t in store.trace(QUEUE_ID)] == [TYNTEC, NORTH]
    assert [(t["recipient"], t["state"]) for t in store.trace("4SPLIT")] == [(NORTH, "waiting")]


def again(first: Message, splits: Sequence[Message], seconds: float) -> tuple[Message, list[Message]]:
    at = first.recorded_at + timedelta(seconds=seconds)
    fresh = [dataclasses.replace(m, token=secrets.token_hex(16), recorded_at=at) for m in (first, *splits)]
    return fresh[0], [dataclasses.replace(m, split_of=fresh[0].token) for m in fresh[1:]]


def test_the_same_message_again_is_undecided_until_postfix_has_it_and_then_a_duplicate_on_every_side(store: Store) -> None:
    first, splits = parts(send(OWN, TYNTEC, client="north", lines=req(), config=TRANSIT))
    day = timedelta(days=1)
    store.record(first, day, splits).result(30)
    second = again(first, splits, 1)
    assert store.record(second[0], day, second[1]).result(30) == Recording(pending=True)
    # The first part's token has come: Postfix has them all, though a further side's mail is not made yet.
    store.accepted(first.token, NOW).result(30)
    third = again(first, splits, 300)
    found = store.record(third[0], day, third[1]).result(30)
    assert found == Recording(repeated=tuple(sorted((OWN, TYNTEC))), answer=first.answer)
    assert [m.transactions[0].state for m in (store.message(third[0].token), store.message(third[1][0].token)) if m] == [
        State.DUPLICATE, State.DUPLICATE,
    ]  # fmt: skip


# -- the responder


class Submitter:
    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.failures: list[str] = []
        """Recipients whose next submissions fail."""

    async def submit(
        self, mail_from: str, rcpt_to: str | Sequence[str], message: bytes, envelope_id: str | None = None,
        notify: str | None = None,
    ) -> str:  # fmt: skip
        for text in list(self.failures):
            if text in str(rcpt_to):
                self.failures.remove(text)
                raise SubmissionError("451 later")
        self.sent.append((mail_from, rcpt_to, message, envelope_id, notify))
        return f"4S{len(self.sent)}"


class House:
    """A responder on a real store, with the message of which the sides are told."""

    def __init__(self, folder: Path, store: Store, *numbers: str, config: str = CONFIG, **options: Any) -> None:
        self.store, self.copier, self.acks = store, Submitter(), Submitter()
        self.seen = send(*numbers, config=config)
        self.first, self.splits = parts(self.seen)
        store.record(self.first, None, self.splits).result(30)
        self.data = TOP.encode() + block(self.seen.edited()) + b"\r\n" + BODY
        self.spool = Spool(folder / "spool", 1_000_000)
        self.spool.open()
        self.responder = Responder(
            store=store, submitter=self.acks, copier=self.copier, router=Router(parse_config(config, "mm4.yaml")),
            unclaimed=folder / "unclaimed", flush=self.flush, now=lambda: NOW, spool=self.spool,
            **({"retry_seconds": 0.05, "pause_seconds": 0.01} | options),
        )  # fmt: skip

    async def flush(self, domain: str) -> None:
        """Nothing to do here."""

    def addresses(self) -> list[str]:
        return [address for address, _ in self.seen.verdict.added if address.endswith("@responder.mm4.invalid")]

    def give(self, addresses: Iterable[str] | None = None, data: bytes | None = None) -> list[int]:
        recipients = list(self.addresses() if addresses is None else addresses)
        content = self.data if data is None else data
        envelope = Envelope(self.seen.verdict.mail_from or "", recipients, len(content))
        return [reply.code for reply in asyncio.run(self.responder.deliver(envelope, content))]


def test_the_responder_makes_and_submits_each_further_sides_mail(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH, OWN)
    assert house.give() == [250, 250, 250]
    assert house.acks.sent == []
    sent = {rcpt[0]: (mail_from, message, envid, notify) for mail_from, rcpt, message, envid, notify in house.copier.sent}
    north, own = house.splits
    assert sent == {
        f"{NORTH}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid": (
            "+491511000001/TYPE=PLMN@mms.gw.example", made(house.seen, 0), north.token, "FAILURE",
        ),
        "+491511000001@mmsc.gw.example": (f"{own.token}@mms.gw.example", made(house.seen, 1), own.token, "FAILURE"),
    }  # fmt: skip
    assert {t["queue_id"] for t in store.trace(QUEUE_ID)} == {QUEUE_ID, "4S1", "4S2"}
    # Postfix brings them again: it did not read our replies.
    assert house.give() == [250, 250, 250]
    assert len(house.copier.sent) == 2


def test_a_side_that_cannot_be_submitted_comes_again_alone(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH, OWN)
    house.copier.failures = ["via-north"] * 100
    assert house.give() == [250, 451, 250]
    states = {t["recipient"]: t["state"] for t in store.trace(QUEUE_ID)}
    assert states == {TYNTEC: "waiting", NORTH: "recorded", OWN: "accepted"}
    house.copier.failures = []
    assert house.give(house.addresses()[1:2]) == [250]
    assert [rcpt for _, rcpt, *_ in house.copier.sent].count((f"{NORTH}/TYPE=PLMN@mms.north.example.via-north.mm4.invalid",)) == 1
    assert {t["state"] for t in store.trace(QUEUE_ID) if t["recipient"] == NORTH} == {"waiting"}


def test_what_was_submitted_and_could_not_be_noted_is_not_sent_twice(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH)
    real, faults = store.accepted, [house.splits[0].token]

    def accepted(token: str, at: datetime, queue_id: str | None = None) -> Future[bool]:
        if token in faults:
            failed: Future[bool] = Future()
            failed.set_exception(StoreError("no"))
            return failed
        return real(token, at, queue_id)

    store.accepted = accepted  # type: ignore[method-assign]
    assert house.give() == [250, 451]
    faults.clear()
    assert house.give(house.addresses()[1:]) == [250]
    assert len(house.copier.sent) == 1
    assert [t["queue_id"] for t in store.trace(house.splits[0].token)] == ["4S1"]


@pytest.mark.parametrize(
    "data", [b"Received: from x by y with ESMTP id 4FORGED\r\nTo: a\r\n\r\n", None], ids=["another-mail", "plain-token"]
)
def test_a_forged_split_token_sends_nothing(tmp_path: Path, store: Store, data: bytes | None) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH)
    address = house.addresses()[1]
    if data is None:
        address = address.replace(".split@", "@")
    assert house.give([address], data) == [250]
    assert house.give([f"{'f' * 32}.split@responder.mm4.invalid"]) == [250]
    assert house.give([f"{TOKEN}.split@responder.mm4.invalid"]) == [250]
    assert house.copier.sent == []
    assert {t["state"] for t in store.trace(QUEUE_ID)} == {"recorded"}


def test_the_whole_message_is_wanted_for_a_split_and_the_top_for_tokens(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH)
    token, split = house.addresses()
    for addresses, wanted in (([token], TOKEN_BYTES), ([split], None), ([token, split], None)):
        assert house.responder.wanted(Envelope("a@b.test", addresses, 0)) == wanted


def test_a_copy_is_kept_of_each_side_that_may_be_asked_again(tmp_path: Path, store: Store) -> None:
    config = CONFIG.replace("    max_size: 1MB\n", "    ack: {retry: 2}\n")
    house = House(tmp_path, store, TYNTEC, NORTH, config=config)
    assert house.give() == [250, 250]
    (north,) = house.splits
    assert house.spool.tokens() == [north.token]
    assert house.spool.read(north.token) == ("+491511000001/TYPE=PLMN@mms.gw.example", made(house.seen, 0))


def test_recipients_who_have_it_are_left_out_of_a_further_sides_mail(tmp_path: Path, store: Store) -> None:
    config = CONFIG.replace("    max_size: 1MB\n", "    transit: yes\n")
    seen = send(OWN, TYNTEC, "+447700900202", client="north", lines=req(), config=config)
    first, (part,) = parts(seen)
    day = timedelta(days=1)
    alone = dataclasses.replace(
        part, token="e" * 32, split=None, split_of=None, queue_id="4OLD", transactions=part.transactions[:1]
    )
    store.record(alone, day).result(30)
    store.accepted(alone.token, NOW).result(30)
    house = House.__new__(House)
    assert store.record(first, day, [part]).result(30).repeated == (TYNTEC,)
    house.copier = Submitter()
    responder = Responder(
        store=store, submitter=house.copier, router=Router(parse_config(config, "mm4.yaml")), unclaimed=tmp_path,
        flush=house.flush, now=lambda: NOW,
    )  # fmt: skip
    data = TOP.encode() + block(seen.edited()) + b"\r\n" + BODY
    envelope = Envelope("x", [f"{part.token}.split@responder.mm4.invalid"], len(data))
    assert [r.code for r in asyncio.run(responder.deliver(envelope, data))] == [250]
    assert [rcpt for _, rcpt, *_ in house.copier.sent] == [
        ("+447700900202/TYPE=PLMN@mm4.tyntec.example.via-tyntec.mm4.invalid",)
    ]


def test_the_queue_shows_whose_part_each_token_is(tmp_path: Path, store: Store) -> None:
    house = House(tmp_path, store, TYNTEC, NORTH, OWN)
    raw = {
        "queue_id": QUEUE_ID, "queue_name": "deferred", "arrival_time": int(datetime.now(UTC).timestamp()), "message_size": 1,
        "sender": "x@y.example", "recipients": [{"address": address} for address in house.addresses()],
    }  # fmt: skip
    entries = list(queued([raw], store, ["mms.gw.example"]))
    assert [(e.kind, e.peer, e.token) for e in entries] == [
        ("token", "tyntec", TOKEN), ("token", "north", house.splits[0].token), ("token", "local", house.splits[1].token),
    ]  # fmt: skip


def test_a_split_is_kept_as_it_is(store: Store) -> None:
    split = Split("4Q", "a@b", "FAILURE", (("+1", "x"),), (("change", "To", 1, "\u00e9\n\tv"), ("delete", "X", 2, None)))
    one = Transaction("t", "m", "+2", "+1")
    message = Message("a" * 32, Direction.OUT, "p", "MM4_forward.REQ", "", "gw", NOW, (one,), split=split, split_of="b" * 32)
    store.record(message).result(30)
    assert store.message(message.token) == message

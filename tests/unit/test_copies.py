"""Duplicates: what the store finds of a message that came before, and what the gateway makes of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fake import Gateway, Ledger, Seen, req
from mm4.gateway.duplicates import digest
from mm4.gateway.verdict import Action
from mm4.protocol.headers import Header
from mm4.protocol.reader import read
from mm4.protocol.transaction import Answer, Direction, Message, Recording, State, Transaction
from mm4.store import Store

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)
FIRST, SECOND = "+491511000001", "+491511000002"
RES = Answer("system@mms.north.example.via-north.mm4.invalid", "system-user@mms.gw.example", "MM4_forward.RES", "Ok", b"first")


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as opened:
        yield opened


def copy(*recipients: str, at: datetime = T0, **values: Any) -> Message:
    state = values.pop("state", State.RECORDED)
    ids = values.pop("ids", ("t-1", "m-1"))
    parts = tuple(Transaction(*ids, "+447700900002", r, state, ack_requested=True) for r in recipients or (FIRST,))
    standard: dict[str, Any] = {
        "token": secrets.token_hex(16), "direction": Direction.IN, "peer": "north", "type": "MM4_forward.REQ",
        "queue_id": "4Q", "host": "gw", "recorded_at": at, "transactions": parts, "answer": replace(RES, message=secrets.token_bytes(4)),
        "source": "north", "digest": "d", "size": 40_000,
    }  # fmt: skip
    return Message(**{**standard, **values})


def kept(store: Store, message: Message, window: timedelta | None = 15 * DAY) -> Recording:
    return store.record(message, window).result(30)


def decided(store: Store, message: Message) -> Message:
    """The message, and Postfix has shown that it has it."""
    assert kept(store, message) == Recording()
    store.accepted(message.token, message.recorded_at + timedelta(milliseconds=50)).result(30)
    return message


def states(store: Store, message: Message) -> list[str]:
    found = store.message(message.token)
    assert found is not None
    return [t.state for t in found.transactions]


def test_the_same_message_again_is_a_duplicate_with_the_first_ones_answer(store: Store) -> None:
    first = decided(store, copy())
    again = copy(at=T0 + timedelta(hours=1))
    assert kept(store, again) == Recording(repeated=(FIRST,), answer=first.answer)
    assert states(store, again) == ["duplicate"]
    found = store.message(again.token)
    assert found is not None
    assert found.answer == first.answer
    assert kept(store, copy(at=T0 + DAY)).answer == first.answer, "and a third time"


@pytest.mark.parametrize(
    "change",
    [
        {"source": "south", "peer": "south"}, {"type": "MM4_delivery_report.REQ"}, {"ids": ("t-2", "m-1")},
        {"ids": ("t-1", "m-2")}, {"ids": ("", "")}, {"source": None},
    ],
    ids=str,
)
def test_another_peer_type_or_id_is_another_message(store: Store, change: dict[str, Any]) -> None:
    decided(store, copy())
    assert kept(store, copy(at=T0 + DAY, **change)) == Recording()


@pytest.mark.parametrize("odd", ["t-\udcff", "t-\0", "t-\u00e9"])
def test_ids_that_no_database_takes_are_known_again(store: Store, odd: str) -> None:
    decided(store, copy(ids=(odd, odd)))
    assert kept(store, copy(ids=(odd, odd), at=T0 + DAY)).repeated == (FIRST,)


def test_another_recipient_is_served(store: Store) -> None:
    first = decided(store, copy())
    both = copy(FIRST, SECOND, at=T0 + DAY)
    assert kept(store, both).repeated == (FIRST,)
    assert states(store, both) == ["duplicate", "recorded"]
    found = store.message(both.token)
    assert found is not None
    assert found.answer == both.answer != first.answer, "its own: it speaks for the new one too"


def test_while_the_first_is_undecided_nothing_is_kept(store: Store) -> None:
    assert kept(store, copy()) == Recording()
    second = copy(at=T0 + timedelta(seconds=59))
    assert kept(store, second).pending
    assert store.message(second.token) is None


def test_what_stays_undecided_was_refused_by_postfix(store: Store) -> None:
    kept(store, copy())
    again = copy(at=T0 + timedelta(seconds=61))
    assert kept(store, again) == Recording()
    assert states(store, again) == ["recorded"]
    store.accepted(again.token, T0 + timedelta(seconds=62)).result(30)
    assert kept(store, copy(at=T0 + timedelta(seconds=70))).repeated == (FIRST,)


@pytest.mark.parametrize(("size", "same"), [(40_000, True), (41_300, True), (38_700, True), (42_000, False), (None, True)])
def test_copies_may_differ_in_size_by_what_systems_on_the_way_add(store: Store, size: int | None, same: bool) -> None:
    first = decided(store, copy())
    found = kept(store, copy(at=T0 + DAY, size=size))
    assert bool(found.repeated) is same
    assert found.conflict == (None if same else first.token)


def test_the_same_ids_with_other_content_are_a_conflict_and_delivered(store: Store) -> None:
    first = decided(store, copy())
    other = copy(at=T0 + DAY, digest="e")
    assert kept(store, other) == Recording(conflict=first.token)
    assert states(store, other) == ["recorded"]
    store.accepted(other.token, T0 + DAY).result(30)
    assert kept(store, copy(at=T0 + 2 * DAY, digest="e")).repeated == (FIRST,), "each has its own copies"


def test_beyond_the_window_it_is_new(store: Store) -> None:
    decided(store, copy())
    assert kept(store, copy(at=T0 + 15 * DAY + timedelta(seconds=1))) == Recording()
    assert kept(store, copy(at=T0 + timedelta(hours=1)), None) == Recording(), "or where nobody looks"


def test_what_was_refused_is_judged_again(store: Store) -> None:
    """Nobody has it, and the reason may be gone: a report about a message that is known by now, for one."""
    error = replace(RES, status="Error-message-not-found")
    decided(store, copy(state=State.REFUSED, answer=error))
    assert kept(store, copy(at=T0 + DAY)) == Recording()


def test_what_bounced_without_a_res_is_delivered_again(store: Store) -> None:
    first = decided(store, copy(answer=None))
    store.bounced(first.token, FIRST, "5.1.1", "no such", T0, None).result(30)
    assert kept(store, copy(at=T0 + DAY)) == Recording()


def test_what_bounced_after_its_ok_is_a_duplicate(store: Store) -> None:
    first = decided(store, copy())
    store.answered(first.token, T0, "4R").result(30)
    store.bounced(first.token, FIRST, "5.1.1", "no such", T0, None).result(30)
    assert kept(store, copy(at=T0 + DAY)).repeated == (FIRST,)


@pytest.mark.parametrize(("status", "again"), [("Ok", False), ("Error-network-problem", True), ("Error-service-denied", True)])
def test_what_an_mmsc_answered_with_an_error_goes_to_it_again(store: Store, status: str, again: bool) -> None:
    first = decided(store, copy(reply_to="PostMaster@mms.north.example"))
    said = Message(
        secrets.token_hex(16), Direction.OUT, "north", "MM4_forward.RES", "4R", "gw", T0 + timedelta(seconds=5), (),
        answer=replace(RES, status=status), source="local", copy_of=first.token,
    )  # fmt: skip
    store.record(said).result(30)
    assert store.held("t-1", "m-1", None)[0].token == first.token, "until the RES is out"
    store.answered(said.token, T0 + timedelta(seconds=6), "4S").result(30)
    assert store.held("t-1", "m-1", None) == ()
    assert states(store, first) == ["answered"]
    found = kept(store, copy(at=T0 + DAY))
    assert found == (Recording() if again else Recording(repeated=(FIRST,), answer=said.answer))


def test_of_two_res_of_an_mmsc_one_goes_out(store: Store) -> None:
    """The second comes again, and finds that nobody waits any more; one that never went out makes room."""
    first = decided(store, copy(reply_to="PostMaster@mms.north.example"))

    def said(seconds: int) -> Message:
        return Message(
            secrets.token_hex(16), Direction.OUT, "north", "MM4_forward.RES", "4R", "gw", T0 + timedelta(seconds=seconds), (),
            answer=RES, source="local", copy_of=first.token,
        )  # fmt: skip

    assert not store.record(said(5)).result(30).pending
    assert store.record(said(6)).result(30).pending
    last = said(70)
    assert not store.record(last).result(30).pending, "Postfix refused the first"
    store.answered(last.token, T0 + timedelta(seconds=71), None).result(30)
    assert store.record(said(200)).result(30).pending


def test_a_clock_that_was_set_back_does_not_shut_a_message_out(store: Store) -> None:
    kept(store, copy(at=T0 + timedelta(hours=1)))
    assert kept(store, copy(at=T0)) == Recording()


def test_one_id_used_without_end_costs_no_more_and_more(store: Store) -> None:
    for number in range(300):
        kept(store, copy(at=T0 + timedelta(seconds=number), digest=f"d{number}", accepted_at=T0))
    last = copy(at=T0 + timedelta(seconds=301), digest="d299")
    assert kept(store, last).repeated == (FIRST,)
    oldest = kept(store, copy(at=T0 + timedelta(seconds=302), digest="d0"))
    assert (oldest.repeated, bool(oldest.conflict)) == ((), True), "beyond the newest that are looked at"


@pytest.mark.parametrize("processes", [1, 2])
def test_of_copies_that_race_one_is_the_first(store: Store, store_url: str, processes: int) -> None:
    other = Store.open(store_url) if processes == 2 else store
    with ThreadPoolExecutor(8) as pool:
        stores = [store, other] * 20
        found = list(pool.map(lambda s: s.record(copy(), DAY).result(30), stores))
    assert sorted(f.pending for f in found) == [False] + [True] * 39
    if other is not store:
        other.close()


# -- the gateway


def peer(found: Recording, *, ack: str | None = "Yes", rcpt: tuple[str, ...] = (FIRST,)) -> Seen:
    ledger = Ledger()
    ledger.found = found
    opened = Gateway(ledger=ledger).peer("north").mail("<+447700900002@mms.north.example>", "SIZE=40000")
    return opened.rcpt(*(f"<{r}/TYPE=PLMN@mms.gw.example>" for r in rcpt)).headers(req(X_Mms_Ack_Request=ack)).end()


def test_a_duplicate_keeps_only_the_commit_recipient_and_the_first_answer() -> None:
    verdict = peer(Recording(repeated=(FIRST,), answer=RES)).verdict
    assert (verdict.action, verdict.status, verdict.reason) == (Action.ACCEPT, "Ok", "a duplicate")
    assert [address.partition("@")[2] for address, _ in verdict.added] == ["responder.mm4.invalid"]
    assert (verdict.answers, verdict.edits) == ((RES,), ())
    assert verdict.deleted


def test_one_that_asks_for_no_ack_gets_none() -> None:
    verdict = peer(Recording(repeated=(FIRST,), answer=RES), ack="No").verdict
    assert (verdict.action, verdict.answers, len(verdict.added)) == (Action.ACCEPT, (), 1)


def test_only_who_has_it_not_yet_gets_it() -> None:
    verdict = peer(Recording(repeated=(FIRST,)), rcpt=(FIRST, SECOND)).verdict
    assert verdict.added[0][0] == f"{SECOND}@mmsc.gw.example"
    assert len(verdict.added) == 2
    assert len(verdict.deleted) == 2
    assert verdict.status == "Ok"


def test_the_second_of_two_that_race_is_told_to_come_again() -> None:
    seen = peer(Recording(pending=True))
    assert (seen.verdict.action, str(seen.reply)[:9]) == (Action.TEMPFAIL, "451 4.7.1")


def test_a_conflict_is_delivered_and_logged() -> None:
    verdict = peer(Recording(conflict="f" * 32)).verdict
    assert verdict.added[0][0] == f"{FIRST}@mmsc.gw.example"
    assert "other content" in (verdict.reason or "")


def test_only_a_peers_messages_are_looked_for() -> None:
    ledger = Ledger()
    seen = Gateway(ledger=ledger).peer("local").mail(f"<{FIRST}@mms.gw.example>").rcpt("<+447700900101@mms.gw.example>")
    seen.headers(req()).end()
    assert ledger.windows == [None]
    assert peer(Recording()).gateway.ledger.windows == [15 * DAY]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"Date": "Fri, 13 Nov 2026 02:28:01 +0200"}, True), ({"Content_Type": "multipart/related; boundary=other"}, True),
        ({"X_Anything": "x"}, True), ({"X_Mms_Ack_Request": "No"}, True), ({"Subject": "another"}, False),
        ({"From": "+447700900003/TYPE=PLMN"}, False), ({"Content_Type": "text/plain"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_what_tells_two_messages_apart(change: dict[str, Any], same: bool) -> None:
    def of(**more: Any) -> str:
        return digest(read([Header(name, value) for name, value in req(**more)]))

    assert (of() == of(**change)) is same


def test_what_could_not_be_kept_in_time_is_withdrawn(store: Store) -> None:
    """The commit may come after the 451: the peer's next try is not put off by it."""
    seen = Gateway(ledger=(late := Ledger(late=True)), eom_seconds=0.2).peer("north").mail("<a@mms.north.example>").rcpt()
    seen.headers(req()).end()
    assert seen.reply.code == 451
    assert late.withdrawn == [seen.gateway.runtime.new_token()]
    message = copy()
    kept(store, message)
    store.withdraw(message.token).result(30)
    assert store.message(message.token) is None
    assert kept(store, copy(at=T0 + timedelta(seconds=1))) == Recording()
    stays = decided(store, copy(ids=("t-9", "m-9")))
    store.withdraw(stays.token).result(30)
    assert store.message(stays.token) is not None, "Postfix has it"

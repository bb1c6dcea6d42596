"""What time does to transactions in the store: each once, in batches, whoever asks."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.dialects import postgresql

from cluster import plan
from mm4.protocol.retry import TRANSIENT, Retry
from mm4.protocol.transaction import Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store.clock import ahead
from mm4.store.timers import _DUE, _TO_SEND, ABANDONED, LEASE, Late

T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
DUE = T0 + timedelta(minutes=10)
LATER = DUE + timedelta(seconds=1)
FIRST, SECOND = "+447700900101", "+447700900102"
RETRIES = {"north": Retry(600, 2)}
NONE = {"north": Retry(600, 0)}


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url, busy_seconds=5) as opened:
        yield opened


def transaction(recipient: str = FIRST, state: State = State.WAITING, **values: Any) -> Transaction:
    standard = {"ack_requested": True, "due_at": DUE}
    return Transaction("t-1", "m-1", "+491511000001", recipient, state=state, **{**standard, **values})


def kept(store: Store, *transactions: Transaction, **values: Any) -> str:
    token = secrets.token_hex(16)
    standard = {"direction": Direction.OUT, "peer": "north", "type": "MM4_forward.REQ", "queue_id": "4A", "host": "gw", "recorded_at": T0}
    store.record(Message(token=token, transactions=transactions or (transaction(),), **{**standard, **values})).result(30)
    return token


def overdue(store: Store, now: datetime = LATER, limit: int = 100, retries: dict[str, Retry] = NONE) -> list[Late]:
    return store.overdue(now, limit, retries).result(30)[0]


def claim(store: Store, now: datetime = LATER, host: str = "gw", retries: dict[str, Retry] = RETRIES, limit: int = 8) -> list[Late]:
    return store.claim(now, limit, retries, host).result(30)[0]


def row(store: Store, token: str, recipient: str = FIRST) -> Transaction:
    message = store.message(token)
    assert message is not None
    return next(t for t in message.transactions if t.recipient == recipient)


def whats(store: Store, recipient: str = FIRST) -> list[str]:
    return [e["what"] for t in store.trace("m-1") if t["recipient"] == recipient for e in t["events"]][1:]


def test_what_is_not_answered_in_time_is_overdue_once(store: Store) -> None:
    token = kept(store)
    assert not store.any_due(DUE - timedelta(seconds=1))
    assert overdue(store, DUE - timedelta(seconds=1)) == []
    assert store.any_due(LATER)
    (late,) = overdue(store)
    assert (late.token, late.peer, late.recipient, late.state) == (token, "north", FIRST, State.OVERDUE)
    assert (row(store, token).state, row(store, token).due_at) == (State.OVERDUE, None)
    assert whats(store) == ["overdue"]
    assert overdue(store, LATER + timedelta(days=1)) == []
    assert not store.any_due(LATER + timedelta(days=1))


@pytest.mark.parametrize("state", [s for s in State if s not in (State.WAITING, State.OVERDUE, State.RECORDED, State.FAILED)])
def test_what_is_decided_is_never_overdue(store: Store, state: State) -> None:
    token = kept(store, transaction(state=state, status="Ok"))
    assert overdue(store, retries=RETRIES) == []
    assert (row(store, token).state, row(store, token).due_at) == (state, None)
    assert whats(store) == []


def test_what_postfix_has_not_shown_to_have_is_looked_at_again_and_again_in_growing_pauses(store: Store) -> None:
    token = kept(store, transaction(state=State.RECORDED))
    now, looks = DUE, 0
    while now < T0 + timedelta(days=30):
        assert overdue(store, now) == []
        looks += 1
        due = row(store, token).due_at
        assert due is not None
        assert due > now
        now = due
    assert looks < 20
    # The responder is back.
    store.accepted(token, now).result(30)
    assert [late.token for late in overdue(store, now)] == [token]


@pytest.mark.slow
def test_ten_thousand_at_once_come_in_batches_and_each_once(store: Store) -> None:
    tokens = [kept(store, transaction(), transaction(SECOND)) for _ in range(10)]
    assert tokens
    # Many rows at once are made in the database: recording them would take longer than all the rest.
    engine = create_engine(store._database.url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO transactions (token, peer, direction, type, transaction_id, message_id, originator, recipient, state,"
                " ack_requested, delivery_report, read_reply, updated_at, due_at)"
                " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9980)"
                " SELECT t.token, t.peer, t.direction, t.type, 't-' || i, 'm-' || i, t.originator, '+4477009' || i, t.state,"
                " true, false, false, t.updated_at, t.due_at FROM n, (SELECT * FROM transactions LIMIT 1) t"
            )
        )
    engine.dispose()
    seen: Counter[int] = Counter()
    batches = 0
    while True:
        found, looked = store.overdue(LATER, 100, NONE).result(30)
        assert len(found) == looked <= 100
        seen.update(late.row for late in found)
        if not looked:
            break
        batches += 1
    assert (len(seen), batches, set(seen.values())) == (10_000, 100, {1})
    assert store.counts() == {"out/overdue": 10_000}


def test_several_processes_have_each_transaction_once(store_url: str) -> None:
    stores = [Store.open(store_url, busy_seconds=30) for _ in range(4)]
    for _ in range(60):
        kept(stores[0], transaction(), transaction(SECOND))
    seen: list[int] = []
    sent: list[int] = []

    def work(store: Store) -> None:
        while found := store.overdue(LATER, 7, RETRIES).result(60)[0]:
            seen.extend(late.row for late in found)
            sent.extend(late.row for late in store.claim(LATER, 7, RETRIES, "gw").result(60)[0])

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent.extend(late.row for late in claim(stores[0], limit=500))
    for store in stores:
        store.close()
    assert len(seen) == len(set(seen)) == 120
    assert len(sent) == len(set(sent)) == 120


@pytest.mark.parametrize("query", [_DUE, _TO_SEND])
def test_on_postgresql_rows_that_another_host_has_are_passed_over(query: Any) -> None:
    assert str(query.compile(dialect=postgresql.dialect())).endswith("FOR UPDATE OF transactions SKIP LOCKED")


def test_what_is_due_is_found_by_its_index(store: Store) -> None:
    values = {"now": T0, "most": 100, "host": "gw", "abandoned": T0}
    for query in (_DUE, _TO_SEND):
        assert "ix_transactions_due" in plan(store, lambda connection, query=query: connection.execute(query, values))  # type: ignore[misc]
    assert "ix_transactions_due" in plan(store, lambda connection: ahead(connection, LATER, 100, RETRIES, "gw"))


# -- sent again


def test_a_copy_is_claimed_sent_and_noted_until_the_attempts_are_over(store: Store) -> None:
    token = kept(store)
    now = LATER
    for attempt in (1, 2):
        (late,) = overdue(store, now, retries=RETRIES)
        assert late.state is State.OVERDUE
        (late,) = claim(store, now)
        assert (late.attempts, late.reason) == (attempt, f"attempt {attempt} of 2")
        assert claim(store, now) == []
        sent, now = now, now + RETRIES["north"].pause(attempt)
        assert store.sent_again(late, sent, f"4B{attempt}", now).result(30)
        assert row(store, token) == transaction(due_at=now, attempts=attempt)
        assert overdue(store, now - timedelta(seconds=1), retries=RETRIES) == []
    assert overdue(store, now, retries=RETRIES) == []
    (late,) = claim(store, now)
    assert (late.state, late.reason) == (State.FAILED, "no RES in time; sent again 2 of 2 times")
    assert claim(store, now) == []
    assert row(store, token).state is State.FAILED
    assert whats(store) == ["overdue", "sent again", "overdue", "sent again", "failed"]


def test_the_pause_is_doubled_each_time_and_ends_somewhere() -> None:
    assert [Retry(600, 9).pause(n) for n in range(4)] == [timedelta(seconds=s) for s in (600, 1200, 2400, 4800)]
    assert Retry(10**9 * 86400, 10).pause(10) == timedelta(days=30)
    assert Retry(600, 2).pause(9) == Retry(600, 2).longest == timedelta(minutes=40)


def test_a_claim_that_runs_out_is_the_same_attempt(store: Store) -> None:
    kept(store)
    overdue(store, retries=RETRIES)
    (first,) = claim(store)
    assert claim(store, LATER + LEASE - timedelta(seconds=1)) == []
    # Even the last of them: it was never noted that it went out.
    (again,) = claim(store, LATER + LEASE, retries={"north": Retry(600, 1)})
    assert (again.row, again.attempts) == (first.row, 1)
    (third,) = claim(store, LATER + 2 * LEASE)
    assert third.attempts == 1
    store.sent_again(third, LATER, "4B", LATER + timedelta(days=1)).result(30)
    assert claim(store, LATER + 3 * LEASE) == []


def test_an_answer_while_a_copy_is_under_way_stands(store: Store) -> None:
    token = kept(store)
    overdue(store, retries=RETRIES)
    (late,) = claim(store)
    store.receive_answer("north", "MM4_forward.RES", "t-1", "m-1", "Ok", None, LATER, "4R", "gw").result(30)
    assert store.sent_again(late, LATER, "4B", LATER + timedelta(hours=1)).result(30) is False
    store.not_sent(late, LATER, "no copy", None).result(30)
    store.not_sent(late, LATER, "later", LATER).result(30)
    assert (row(store, token).state, row(store, token).status) == (State.ANSWERED, "Ok")
    assert overdue(store, LATER + timedelta(days=1), retries=RETRIES) == []
    assert row(store, token).due_at is None


def test_only_recipients_without_an_answer_are_sent_to_again(store: Store) -> None:
    kept(store, transaction(), transaction(SECOND, State.ANSWERED, status="Ok"))
    overdue(store, retries=RETRIES)
    assert [late.recipient for late in claim(store)] == [FIRST]


@pytest.mark.parametrize("status", sorted(TRANSIENT))
def test_an_error_that_may_pass_is_sent_again_when_it_is_due(store: Store, status: str) -> None:
    token = kept(store, transaction(state=State.ANSWERED, status=status))
    assert overdue(store, retries=RETRIES) == []
    (late,) = claim(store)
    store.sent_again(late, LATER, "4B", LATER + timedelta(minutes=20)).result(30)
    assert row(store, token).state is State.WAITING
    store.receive_answer("north", "MM4_forward.RES", "t-1", "m-1", "Ok", None, LATER, "4R", "gw").result(30)
    assert (row(store, token).state, row(store, token).status) == (State.ANSWERED, "Ok")


def test_an_error_that_lasts_fails_in_the_end(store: Store) -> None:
    token = kept(store, transaction(state=State.ANSWERED, status="Error-network-problem", attempts=2))
    (late,) = overdue(store, retries=RETRIES)
    assert late.state is State.FAILED
    assert (row(store, token).state, row(store, token).status) == (State.FAILED, "Error-network-problem")


@pytest.mark.parametrize("status", ["Error-service-denied", "Error-content-not-accepted", "Error-message-not-found"])
def test_a_permanent_error_is_an_answer(store: Store, status: str) -> None:
    token = kept(store, transaction(state=State.ANSWERED, status=status))
    assert overdue(store, retries=RETRIES) == []
    assert claim(store) == []
    assert (row(store, token).state, row(store, token).due_at) == (State.ANSWERED, None)


def test_nothing_is_sent_again_after_its_expiry(store: Store) -> None:
    kept(store, expires_at=LATER)
    assert overdue(store, retries=RETRIES) == []
    (late,) = claim(store)
    assert (late.state, late.reason) == (State.FAILED, "no RES in time; the message has expired")
    assert claim(store) == []


def test_what_expires_while_it_waits_to_be_sent_again_fails(store: Store) -> None:
    token = kept(store, expires_at=LATER + timedelta(seconds=5))
    overdue(store, retries=RETRIES)
    (late,) = claim(store, LATER + timedelta(seconds=5))
    assert late.state is State.FAILED
    assert row(store, token).state is State.FAILED


def test_without_retries_what_expires_is_overdue(store: Store) -> None:
    kept(store, expires_at=LATER)
    assert [late.state for late in overdue(store)] == [State.OVERDUE]


def test_a_copy_that_is_on_another_host_is_left_to_it_for_a_day(store: Store) -> None:
    token = kept(store)
    overdue(store, retries=RETRIES)
    assert claim(store, host="other") == []
    assert claim(store, LATER + ABANDONED, host="other") == []
    assert (row(store, token).state, row(store, token).due_at) == (State.OVERDUE, None)
    assert whats(store) == ["overdue", "not sent again"]


def test_a_reload_that_takes_the_retries_away_ends_them(store: Store) -> None:
    token = kept(store)
    overdue(store, retries=RETRIES)
    assert claim(store, retries=NONE) == []
    assert (row(store, token).state, row(store, token).due_at) == (State.OVERDUE, None)


def test_what_postfix_did_not_take_is_the_same_attempt_later(store: Store) -> None:
    token = kept(store)
    overdue(store, retries=RETRIES)
    (late,) = claim(store)
    store.not_sent(late, LATER, "451 later", LATER + timedelta(seconds=30)).result(30)
    assert claim(store, LATER + timedelta(seconds=29)) == []
    assert [again.attempts for again in claim(store, LATER + timedelta(seconds=30))] == [1]
    assert row(store, token).state is State.OVERDUE


@pytest.mark.parametrize(("status", "state"), [(None, State.OVERDUE), ("Error-unspecified", State.ANSWERED)])
def test_what_has_no_copy_is_what_it_was(store: Store, status: str | None, state: State) -> None:
    token = kept(store, transaction(state=State.ANSWERED if status else State.WAITING, status=status))
    overdue(store, retries=RETRIES)
    (late,) = claim(store)
    store.not_sent(late, LATER, "no copy was kept", None).result(30)
    assert (row(store, token).state, row(store, token).status, row(store, token).due_at) == (state, status, None)
    assert overdue(store, LATER + timedelta(days=2), retries=RETRIES) == []


def test_what_failed_is_given_again_until_its_originator_was_told(store: Store) -> None:
    token = kept(store, expires_at=T0)
    assert overdue(store, retries=RETRIES) == []
    (late,) = claim(store)
    assert overdue(store, LATER + LEASE - timedelta(seconds=1), retries=RETRIES) == []
    (again,) = overdue(store, LATER + LEASE, retries=RETRIES)
    assert (again.row, again.again, late.again) == (late.row, True, False)
    store.settle([late.row]).result(30)
    assert overdue(store, LATER + timedelta(days=1), retries=RETRIES) == []
    assert row(store, token).state is State.FAILED
    assert whats(store) == ["failed"]


# -- held back


class Queue:
    """What lies in the queue of this host, by queue id."""

    def __init__(self, *queue_ids: str) -> None:
        self.ids = set(queue_ids)

    def hinders(self, peer: str, recipient: str, queue_ids: Sequence[str | None]) -> str | None:
        return f"{recipient} still in the queue" if self.ids.intersection(queue_ids) else None


def claim_with(store: Store, queue: Queue, now: datetime, limit: int = 8, retries: dict[str, Retry] = RETRIES) -> list[Late]:
    return store.claim(now, limit, retries, "gw", queue).result(30)[0]


@pytest.mark.parametrize("expires_at", [None, LATER])
def test_what_is_in_the_queue_is_neither_sent_nor_failed_however_long_and_no_attempt(store: Store, expires_at: datetime | None) -> None:
    token = kept(store, expires_at=expires_at)
    now, queue, pause = LATER, Queue("4A"), RETRIES["north"].pause(0)
    for _ in range(10):
        overdue(store, now, retries=RETRIES)
        assert claim_with(store, queue, now) == []
        assert row(store, token) == transaction(state=State.OVERDUE, due_at=now + pause)
        now += pause
    queue.ids.clear()
    assert [what for what in whats(store) if what != "overdue"] == ["held back"]
    # It has just left: the peer has as long to answer as the first time.
    assert claim_with(store, queue, now) == []
    assert claim_with(store, queue, now + pause - timedelta(seconds=1)) == []
    (late,) = claim_with(store, queue, now + pause)
    assert late.state is (State.FAILED if expires_at else State.OVERDUE)
    assert late.attempts == (0 if expires_at else 1)
    assert [what for what in whats(store) if what not in ("overdue", "failed")] == ["held back", "no longer held back"]


def test_the_last_attempt_is_not_failed_while_its_copy_is_in_the_queue(store: Store) -> None:
    token, retries, now = kept(store), {"north": Retry(600, 1)}, LATER
    overdue(store, retries=retries)
    (late,) = claim_with(store, Queue(), now, retries=retries)
    store.sent_again(late, now, "4B", now).result(30)
    assert overdue(store, now, retries=retries) == []
    assert claim_with(store, Queue("4B"), now, retries=retries) == []
    assert row(store, token).state is State.OVERDUE
    store.receive_answer("north", "MM4_forward.RES", "t-1", "m-1", "Ok", None, now, "4R", "gw").result(30)
    assert (row(store, token).state, row(store, token).due_at) == (State.ANSWERED, None)


def test_many_that_are_held_back_do_not_keep_others_from_being_sent(store: Store) -> None:
    for number in range(50):
        kept(store, transaction(), queue_id=f"4H{number}")
    free = kept(store, transaction(due_at=LATER), queue_id="4F")
    overdue(store, retries=RETRIES)
    assert [late.token for late in claim_with(store, Queue(*(f"4H{n}" for n in range(50))), LATER, limit=2)] == [free]


def test_a_look_is_worth_while_only_for_what_is_to_be_sent_from_here(store: Store) -> None:
    kept(store)
    assert not store.any_to_send(LATER, "gw")
    overdue(store, retries=RETRIES)
    assert [store.any_to_send(LATER, host) for host in ("gw", "other")] == [True, False]
    assert store.any_to_send(LATER + ABANDONED, "other")


AHEAD = {
    "waiting": (State.WAITING, {}, timedelta(minutes=10)),
    "sent again once": (State.WAITING, {"attempts": 1}, timedelta(minutes=20)),
    "sent again more often than the entry says now": (State.WAITING, {"attempts": 9}, timedelta(minutes=40)),
    "an error that may pass": (State.ANSWERED, {"status": "Error-network-problem"}, timedelta(minutes=10)),
    "to be sent again": (State.OVERDUE, {}, timedelta()),
    "its originator is to be told": (State.FAILED, {}, LEASE),
}


@pytest.mark.parametrize(("state", "values", "pause"), AHEAD.values(), ids=AHEAD)
def test_what_a_clock_put_too_far_ahead_is_due_when_its_peer_s_entry_says(
    store: Store, state: State, values: dict[str, Any], pause: timedelta
) -> None:
    token = kept(store, transaction(state=state, **values))
    longest = timedelta(minutes=40)
    assert store.ahead(DUE - longest, 9, RETRIES, "gw") == [], "as late as it may be"
    now = DUE - longest - timedelta(seconds=1)
    assert store.ahead(now, 9, RETRIES, "other") == [], "of its own clock each host knows"
    assert store.ahead(now, 9, {"south": Retry(600, 2)}, "gw") == []
    found = store.ahead(now, 9, RETRIES, "gw")
    assert [(one.before, one.due_at) for one in found] == [(DUE, now + pause)]
    store.set_due(found).result(30)
    assert row(store, token).due_at == now + pause
    assert store.ahead(now, 9, RETRIES, "gw") == []
    assert whats(store) == []


def test_a_claim_of_a_clock_that_was_ahead_runs_out_and_is_the_same_attempt(store: Store) -> None:
    kept(store)
    overdue(store, retries=RETRIES)
    (late,) = claim(store)
    now = LATER - timedelta(days=1)
    store.set_due(store.ahead(now, 9, RETRIES, "gw")).result(30)
    assert claim(store, now + LEASE - timedelta(seconds=1)) == [], "whoever has it may be sending it"
    (again,) = claim(store, now + LEASE)
    assert again.attempts == late.attempts == 1


def test_what_happens_before_a_time_is_set_back_stands(store: Store) -> None:
    token = kept(store)
    found = store.ahead(T0 - timedelta(days=1), 9, RETRIES, "gw")
    store.receive_answer("north", "MM4_forward.RES", "t-1", "m-1", "Ok", None, T0, "4C", "gw").result(30)
    store.set_due(found).result(30)
    assert (row(store, token).state, row(store, token).due_at) == (State.ANSWERED, None)


def test_what_postfix_has_not_shown_to_have_keeps_its_pauses_until_it_has(store: Store) -> None:
    token = kept(store, transaction(state=State.RECORDED))
    now = T0 - timedelta(days=1)
    assert store.ahead(now, 9, RETRIES, "gw") == []
    store.accepted(token, now).result(30)
    assert [one.due_at for one in store.ahead(now, 9, RETRIES, "gw")] == [now + timedelta(minutes=10)]


def test_a_life_is_told_in_the_order_in_which_it_happened_whatever_the_clock_was(store: Store) -> None:
    token = kept(store)
    store.accepted(token, T0).result(30)
    overdue(store, T0 + timedelta(days=2))
    store.receive_answer("north", "MM4_forward.RES", "t-1", "m-1", "Ok", None, T0 + timedelta(days=1), "4C", "gw").result(30)
    assert whats(store) == ["accepted by Postfix", "overdue", "late answer"]


def test_a_copy_is_awaited_while_a_recipient_may_need_it(store: Store) -> None:
    waiting = [
        kept(store),
        kept(store, transaction(state=State.RECORDED)),
        kept(store, transaction(state=State.OVERDUE)),
        kept(store, transaction(state=State.ANSWERED, status="Ok"), transaction(SECOND)),
        kept(store, transaction(state=State.ANSWERED, status="Error-network-problem")),
    ]
    done = [
        kept(store, transaction(state=State.ANSWERED, status="Ok")),
        kept(store, transaction(state=State.ANSWERED, status="Error-service-denied")),
        kept(store, transaction(state=State.FAILED)),
        kept(store, transaction(state=State.BOUNCED)),
        kept(store, transaction(state=State.OVERDUE, due_at=None)),
        "0" * 32,
    ]
    assert store.awaited([*waiting, *done]) == set(waiting)
    assert store.awaited([*(secrets.token_hex(16) for _ in range(1200)), waiting[0]]) == {waiting[0]}
    assert store.awaited([]) == set()

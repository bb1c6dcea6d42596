"""What the store keeps: messages, the states of their transactions, answers, bounces and the trace."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cluster import plan
from mm4.protocol.errors import StoreError
from mm4.protocol.transaction import Answer, Direction, Message, Recording, State, Transaction
from mm4.store import Store
from mm4.store.listing import Wanted

REQ, RES = "MM4_forward.REQ", "MM4_forward.RES"
T0 = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SENDER, FIRST, SECOND = "+447700900101", "+447700900102", "+447700900103"
ANSWER = Answer("system@mmsc.peer.example", "system@mms.example", RES, "Ok", b"X-Mms-3GPP: 1\r\n\r\n")


def transaction(**values: Any) -> Transaction:
    return Transaction(
        **{"transaction_id": "t-1", "message_id": "m-1", "originator": SENDER, "recipient": FIRST, **values}
    )


def mail(*transactions: Transaction, **values: Any) -> Message:
    standard = {
        "token": secrets.token_hex(16),
        "direction": Direction.IN,
        "peer": "tyntec",
        "type": REQ,
        "queue_id": "4ABCDE",
        "host": "mx1.example",
        "recorded_at": T0,
        "transactions": transactions or (transaction(),),
    }
    return Message(**{**standard, **values})


def outward(*transactions: Transaction, **values: Any) -> Message:
    return mail(*transactions or (transaction(ack_requested=True),), direction=Direction.OUT, **values)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url, busy_seconds=1) as opened:
        yield opened


def kept(store: Store, message: Message) -> Message:
    store.record(message).result(30)
    return message


def states(store: Store, message: Message) -> list[tuple[str, str | None]]:
    found = store.message(message.token)
    assert found is not None
    return [(one.state.value, one.status) for one in found.transactions]


def receive(store: Store, **values: Any) -> int:
    standard = {
        "peer": "tyntec", "type": RES, "transaction_id": "t-1", "message_id": "m-1", "status": "Ok",
        "text": None, "at": T0 + timedelta(seconds=9), "queue_id": "4RES", "host": "mx2.example",
    }  # fmt: skip
    return store.receive_answer(**{**standard, **values}).result(30)


def whats(store: Store, identifier: str) -> list[str]:
    return [event["what"] for found in store.trace(identifier) for event in found["events"]]


def test_a_message_comes_back_as_it_was_recorded(store: Store) -> None:
    message = mail(
        transaction(ack_requested=True, delivery_report=True, status="Ok"),
        transaction(recipient="a.user@mail.example", read_reply=True, state=State.REFUSED),
        answer=ANSWER,
        accepted_at=T0 + timedelta(microseconds=5),
        answered_at=T0 + timedelta(seconds=1),
        answer_queue_id="4RES",
    )
    assert store.message(kept(store, message).token) == message
    assert store.message("unknown") is None


def test_a_message_without_transactions_or_answer_is_kept(store: Store) -> None:
    message = mail(transactions=())
    assert store.message(kept(store, message).token) == message


def test_times_are_given_back_in_utc(store: Store) -> None:
    local = datetime(2026, 11, 22, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    found = store.message(kept(store, mail(recorded_at=local)).token)
    assert found is not None
    assert found.recorded_at == local
    assert found.recorded_at.isoformat() == "2026-11-22T10:00:00+00:00"


def test_a_time_without_zone_and_a_token_kept_twice_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no time zone"):
        store.record(mail(recorded_at=T0.replace(tzinfo=None))).result(30)
    message = kept(store, mail())
    with pytest.raises(StoreError, match=r"messages\.token|pk_messages"):
        store.record(message).result(30)
    with pytest.raises(StoreError, match="no time zone"):
        store.accepted(message.token, T0.replace(tzinfo=None)).result(30)


@pytest.mark.parametrize(
    ("direction", "ack", "before", "after"),
    [
        (Direction.IN, True, State.RECORDED, "accepted"),
        (Direction.IN, False, State.RECORDED, "accepted"),
        (Direction.OUT, True, State.RECORDED, "waiting"),
        (Direction.OUT, False, State.RECORDED, "accepted"),
        (Direction.OUT, True, State.ANSWERED, "answered"),
        (Direction.IN, True, State.REFUSED, "refused"),
    ],
)
def test_accepted_moves_what_was_recorded(
    store: Store, direction: Direction, ack: bool, before: State, after: str
) -> None:
    message = kept(store, mail(transaction(ack_requested=ack, state=before), direction=direction))
    assert store.accepted(message.token, T0 + timedelta(seconds=1)).result(30) is True
    assert states(store, message) == [(after, None)]


def test_accepted_counts_once_and_knows_its_tokens(store: Store) -> None:
    message = kept(store, mail(queue_id=""))
    assert store.accepted(message.token, T0, "4FIRST").result(30) is True
    assert store.accepted(message.token, T0 + timedelta(hours=1), "4SECOND").result(30) is True
    assert store.accepted("unknown", T0).result(30) is False
    found = store.message(message.token)
    assert found is not None
    assert (found.accepted_at, found.queue_id) == (T0, "4FIRST")


def test_answered_sets_the_status_of_the_answer_once(store: Store) -> None:
    message = kept(store, mail(transaction(), transaction(state=State.REFUSED, status="Error-x"), answer=ANSWER))
    assert store.answered(message.token, T0 + timedelta(seconds=2), "4RES").result(30) is True
    assert store.answered(message.token, T0 + timedelta(hours=2), "4LATER").result(30) is True
    assert store.accepted(message.token, T0 + timedelta(hours=3)).result(30) is True
    assert store.answered("unknown", T0, "4RES").result(30) is False
    assert states(store, message) == [("answered", "Ok"), ("refused", "Error-x")]
    found = store.message(message.token)
    assert found is not None
    assert found.accepted_at == found.answered_at == T0 + timedelta(seconds=2)
    assert found.answer_queue_id == "4RES"


def test_answered_leaves_outward_transactions_waiting(store: Store) -> None:
    message = kept(store, outward(answer=ANSWER))
    store.answered(message.token, T0, "4RES").result(30)
    assert states(store, message) == [("waiting", None)]


@pytest.mark.parametrize(
    ("answer", "matched"),
    [
        ({}, 2),
        ({"message_id": None}, 2),
        ({"recipients": (SECOND,)}, 1),
        ({"recipients": (FIRST, SECOND, "+447700900109")}, 2),
        ({"recipients": ("+447700900109",)}, 0),
        ({"message_id": "m-2"}, 0),
        ({"transaction_id": "t-2"}, 0),
        ({"transaction_id": "T-1"}, 0),
        ({"peer": "other"}, 0),
        ({"peer": "local"}, 0),
        ({"type": "MM4_delivery_report.RES"}, 0),
        ({"type": REQ}, 0),
    ],
)
def test_an_answer_fits_only_its_own_request(store: Store, answer: dict[str, Any], matched: int) -> None:
    one, two = transaction(ack_requested=True), transaction(recipient=SECOND, ack_requested=True)
    message = kept(store, outward(one, two))
    inward = kept(store, mail(one))
    store.accepted(message.token, T0).result(30)
    assert receive(store, **answer) == matched
    assert [state for state, _ in states(store, message)].count("answered") == matched
    assert [status for _, status in states(store, message)].count("Ok") == matched
    assert states(store, inward) == [("recorded", None)]
    assert whats(store, "m-1").count("answer received") == matched


def test_an_answer_that_overtakes_postfix_is_not_undone(store: Store) -> None:
    message = kept(store, outward())
    assert receive(store) == 1
    store.accepted(message.token, T0).result(30)
    assert states(store, message) == [("answered", "Ok")]


def test_a_report_is_answered_by_its_own_res(store: Store) -> None:
    message = kept(store, outward(type="MM4_read_reply_report.REQ"))
    assert receive(store, type="MM4_read_reply_report.RES") == 1
    assert states(store, message) == [("answered", "Ok")]


def test_a_repeated_answer_changes_no_status(store: Store) -> None:
    message = kept(store, outward())
    assert receive(store, status="Ok") == 1
    assert receive(store, status="Error-network-problem") == 1
    assert states(store, message) == [("answered", "Ok")]
    store.bounced(message.token, None, "Rejected", "later", T0, None).result(30)
    assert receive(store, status="Error-network-problem") == 1
    assert states(store, message) == [("bounced", "Ok")]
    assert whats(store, "t-1").count("contradictory answer") == 2


def test_what_was_refused_cannot_be_answered(store: Store) -> None:
    message = kept(store, outward(transaction(state=State.REFUSED, status="Error-service-denied")))
    assert receive(store) == 0
    assert states(store, message) == [("refused", "Error-service-denied")]


def test_an_unknown_answer_leaves_an_event_with_what_it_said(store: Store, tmp_path: Path) -> None:
    assert receive(store, transaction_id='x"\0\udcff', message_id=None, text="what?") == 0
    with store._readers.connect() as connection:
        row = connection.exec_driver_sql("SELECT what, transaction_row, token, queue_id, detail FROM events").one()
    assert tuple(row[:4]) == ("unknown answer", None, None, "4RES")
    assert "MM4_forward.RES Ok from tyntec at mx2.example" in row[4]
    assert row[4].endswith(": what?")


@pytest.mark.parametrize("odd", ["t-\udcff", "t-\0", "t-\u00e9"])
def test_text_that_no_database_takes_is_kept_and_found(store: Store, odd: str) -> None:
    message = kept(store, outward(transaction(transaction_id=odd, recipient=odd)))
    assert receive(store, transaction_id=odd, recipients=(odd,), text=odd, status=odd) == 1
    assert store.bounced(message.token, odd, odd, odd, T0, None).result(30) == 1
    assert len(store.trace(odd)) == 1
    assert store.message(odd) is None


def test_a_bounce_concerns_one_recipient_or_all(store: Store) -> None:
    message = kept(store, outward(transaction(), transaction(recipient=SECOND)))
    assert store.bounced(message.token, SECOND, "Rejected", "550 no such user", T0, "4DSN").result(30) == 1
    assert states(store, message) == [("recorded", None), ("bounced", "Rejected")]
    assert store.bounced(message.token, None, "Expired", "late", T0, None).result(30) == 2
    assert states(store, message) == [("bounced", "Expired"), ("bounced", "Rejected")]


def test_a_bounce_keeps_the_status_of_an_answer(store: Store) -> None:
    message = kept(store, outward())
    receive(store, status="Ok")
    for _ in range(2):
        assert store.bounced(message.token, FIRST, "Rejected", "550", T0, None).result(30) == 1
    assert states(store, message) == [("bounced", "Ok")]


def test_a_bounce_that_fits_nothing_is_noted(store: Store) -> None:
    message = kept(store, outward())
    assert store.bounced(message.token, "+447700900109", "Rejected", "550", T0, None).result(30) == 0
    assert store.bounced("unknown", None, "Rejected", "550", T0, None).result(30) == 0
    assert "unknown bounce" in whats(store, message.token)


@pytest.mark.parametrize("identifier", ["m-1", "t-1", '"m-1"', "'t-1'", "4ABCDE"])
def test_trace_finds_by_every_identifier(store: Store, identifier: str) -> None:
    message = kept(store, mail(answer=ANSWER))
    kept(store, mail(transaction(transaction_id="t-9", message_id="m-9"), queue_id="4OTHER"))
    assert store.trace(identifier) == store.trace(message.token) != []
    assert len(store.trace(identifier)) == 1
    assert store.trace("nothing") == []


def test_trace_tells_the_whole_life(store: Store) -> None:
    message = kept(store, mail(answer=ANSWER))
    other = kept(store, outward(recorded_at=T0 - timedelta(seconds=1), token="0" * 32))
    store.accepted(message.token, T0 + timedelta(seconds=1)).result(30)
    store.answered(message.token, T0 + timedelta(seconds=3), "4RES").result(30)
    store.event(message.token, T0 + timedelta(seconds=2), "submission failed", "4X", "queue full").result(30)
    store.bounced(message.token, FIRST, "Rejected", "550 5.1.1", T0 + timedelta(seconds=4), "4DSN").result(30)
    before, found = store.trace("m-1")
    assert before["direction"] == other.direction == "out"
    assert found == {
        "peer": "tyntec",
        "direction": "in",
        "type": REQ,
        "transaction_id": "t-1",
        "message_id": "m-1",
        "originator": "+447700900101",
        "recipient": FIRST,
        "report": None,
        "state": "bounced",
        "status": "Ok",
        "queue_id": "4ABCDE",
        "host": "mx1.example",
        "events": [
            {"at": "2026-11-22T10:00:00+00:00", "what": "recorded", "queue_id": "4ABCDE", "detail": None},
            {
                "at": "2026-11-22T10:00:01+00:00",
                "what": "accepted by Postfix",
                "queue_id": "4ABCDE",
                "detail": None,
            },
            {
                "at": "2026-11-22T10:00:02+00:00",
                "what": "submission failed",
                "queue_id": "4X",
                "detail": "queue full",
            },
            {
                "at": "2026-11-22T10:00:03+00:00",
                "what": "MM4_forward.RES Ok submitted",
                "queue_id": "4RES",
                "detail": None,
            },
            {
                "at": "2026-11-22T10:00:04+00:00",
                "what": "bounced",
                "queue_id": "4DSN",
                "detail": "Rejected: 550 5.1.1",
            },
        ],
    }


def test_the_events_of_one_recipient_are_not_those_of_another(store: Store) -> None:
    message = kept(store, outward(transaction(), transaction(recipient=SECOND)))
    store.bounced(message.token, SECOND, "Rejected", "550", T0, None).result(30)
    first, second = store.trace(message.token)
    assert [event["what"] for event in first["events"]] == ["recorded"]
    assert [event["what"] for event in second["events"]] == ["recorded", "bounced"]


def test_owed_gives_the_answers_that_are_not_out(store: Store) -> None:
    late = kept(store, mail(transaction(), transaction(recipient=SECOND), answer=ANSWER))
    later = kept(store, mail(answer=ANSWER, recorded_at=T0 + timedelta(minutes=1)))
    kept(store, mail())
    done = kept(store, mail(answer=ANSWER))
    store.answered(done.token, T0, "4RES").result(30)
    assert store.owed() == [late, later]
    assert store.owed(T0 + timedelta(seconds=1)) == [late]
    assert store.owed(T0) == []


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM messages WHERE answer_to IS NOT NULL AND answered_at IS NULL", "ix_messages_owed"),
        (
            "SELECT * FROM transactions WHERE transaction_id='x' AND peer='p' AND direction='out'",
            "ix_transactions_correlation",
        ),
        ("SELECT * FROM transactions WHERE transaction_id = 'x'", "ix_transactions_correlation"),
    ],
)
def test_what_is_asked_often_goes_by_index(store: Store, query: str, index: str) -> None:
    assert index in plan(store, lambda connection: connection.execute(text(query)))


def test_counts_are_by_direction_and_state(store: Store) -> None:
    assert store.counts() == {}
    kept(store, mail(transaction(), transaction(recipient=SECOND)))
    kept(store, outward(transaction(state=State.WAITING)))
    assert store.counts() == {"in/recorded": 2, "out/waiting": 1}


def test_many_threads_read_what_they_wrote(store: Store) -> None:
    def write_and_read(number: int) -> bool:
        message = kept(store, mail(transaction(transaction_id=f"t-{number}")))
        return store.message(message.token) == message and len(store.trace(f"t-{number}")) == 1

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(write_and_read, range(200)))


def test_ping_succeeds_and_a_closed_store_fails_at_once(store: Store) -> None:
    store.ping()
    future = store.record(mail())
    store.close()
    assert future.result(0) == Recording()  # what was handed in before is written
    started = time.monotonic()
    with pytest.raises(StoreError, match="is closed"):
        store.record(mail()).result(0)
    with pytest.raises(StoreError, match="is closed"):
        store.message("x")
    with pytest.raises(StoreError, match="is closed"):
        store.ping()
    assert time.monotonic() - started < 0.5
    store.close()


# -- what a report is compared with


def test_an_original_says_who_sent_it_what_he_asked_for_and_from_where_it_came(store: Store) -> None:
    kept(store, mail(transaction(delivery_report=True), transaction(recipient=SECOND, read_reply=True)))
    second, first = store.originals("m-1")
    assert (first.direction, first.peer, first.source, first.originator) == (Direction.IN, "tyntec", "tyntec", SENDER)
    assert (first.recipient, first.delivery_report, first.read_reply) == (FIRST, True, False)
    assert (second.recipient, second.delivery_report, second.read_reply) == (SECOND, False, True)
    assert first.recorded_at == T0
    assert store.originals("m-2") == ()


def test_originals_are_narrowed_by_each_thing_that_is_given(store: Store) -> None:
    kept(store, mail(transaction(), transaction(recipient=SECOND)))
    kept(store, outward(transaction(), peer="north"))
    kept(store, outward(transaction(), peer="north", source="tyntec"))
    assert len(store.originals("m-1")) == 4
    assert {o.recipient for o in store.originals("m-1", recipient=SECOND)} == {SECOND}
    assert {o.peer for o in store.originals("m-1", peer="north")} == {"north"}
    assert [o.source for o in store.originals("m-1", direction=Direction.OUT)] == ["tyntec", "local"]
    assert store.originals("m-1", peer="south") == ()


def test_a_report_and_what_was_refused_are_no_originals(store: Store) -> None:
    kept(store, mail(transaction(report="Retrieved"), type="MM4_delivery_report.REQ"))
    kept(store, mail(transaction(state=State.REFUSED, status="Error-service-denied")))
    assert store.originals("m-1") == ()


def test_of_an_id_used_without_end_the_newest_originals_are_read(store: Store) -> None:
    numbers = [f"+4477009{n:05}" for n in range(1002)]
    kept(store, mail(*(transaction(recipient=number) for number in numbers)))
    found = [original.recipient for original in store.originals("m-1")]
    assert found == numbers[:1:-1]


def test_what_a_report_says_and_where_a_message_came_from_are_kept(store: Store) -> None:
    message = kept(store, mail(transaction(report="Retrieved"), type="MM4_delivery_report.REQ", source="tyntec"))
    found = store.message(message.token)
    assert found == message
    (traced,) = store.trace("m-1")
    assert (traced["report"], traced["originator"]) == ("Retrieved", SENDER)


def test_a_suppressed_report_cannot_be_answered(store: Store) -> None:
    suppressed = transaction(state=State.SUPPRESSED, report="Read")
    message = kept(store, mail(suppressed, type="MM4_read_reply_report.REQ", direction=Direction.OUT))
    assert receive(store, type="MM4_read_reply_report.RES") == 0
    assert states(store, message) == [("suppressed", None)]


# -- answers of every kind


def test_one_mail_may_have_another_outcome_for_each_recipient(store: Store) -> None:
    both = (transaction(ack_requested=True), transaction(recipient=SECOND, ack_requested=True))
    message = kept(store, outward(*both))
    store.accepted(message.token, T0).result(30)
    assert receive(store, recipients=(FIRST,)) == 1
    assert receive(store, status="Error-service-denied", recipients=(SECOND,)) == 1
    assert states(store, message) == [("answered", "Ok"), ("answered", "Error-service-denied")]


def test_a_second_answer_that_says_otherwise_changes_nothing_and_is_told_apart(store: Store) -> None:
    message = kept(store, outward())
    receive(store)
    receive(store)
    receive(store, status="Error-network-problem")
    assert states(store, message) == [("answered", "Ok")]
    assert [what for what in whats(store, "m-1") if "answer" in what] == [
        "answer received", "repeated answer", "contradictory answer"
    ]  # fmt: skip


@pytest.mark.parametrize("state", [State.OVERDUE, State.FAILED])
def test_a_late_answer_counts_and_is_called_late(store: Store, state: State) -> None:
    due = transaction(ack_requested=True, state=state, due_at=T0 + timedelta(hours=1))
    message = kept(store, outward(due))
    assert receive(store) == 1
    assert states(store, message) == [("answered", "Ok")]
    assert "late answer" in whats(store, "m-1")
    found = store.message(message.token)
    assert found is not None
    assert found.transactions[0].due_at is None, "nothing is awaited any more"
    receive(store)
    assert whats(store, "m-1")[-1] == "repeated answer"


def test_what_a_bounce_returns_is_found_by_its_ids_newest_first(store: Store) -> None:
    old = kept(store, outward())
    new = kept(store, outward(transaction(ack_requested=True), transaction(recipient=SECOND)))
    other = kept(store, outward(transaction(message_id="m-2")))
    came = kept(store, mail())
    assert [m.token for m in store.returned("t-1", "m-1", Direction.OUT)] == [new.token, old.token]
    assert [m.token for m in store.returned("t-1", None, Direction.OUT)] == [other.token, new.token, old.token]
    assert [m.token for m in store.returned("t-1", "m-1", Direction.IN)] == [came.token]
    assert store.returned("t-2", None, Direction.OUT) == ()


def test_what_an_operator_asks_and_changes_is_the_same_in_every_database(store: Store) -> None:
    came = kept(store, mail(transaction(), transaction(recipient=SECOND), answer=ANSWER))
    sent = kept(store, outward(transaction(ack_requested=True, due_at=T0 + timedelta(minutes=10)), peer="north"))
    store.accepted(sent.token, T0).result(30)
    third, second, first = store.listed(Wanted())
    assert [row["recipient"] for row in (first, second, third)] == [FIRST, SECOND, FIRST]
    for wanted, rows in (
        (Wanted(peer="north"), [third]), (Wanted(direction=Direction.IN), [second, first]), (Wanted(state=State.WAITING), [third]),
        (Wanted(type=REQ), [third, second, first]), (Wanted(number=SECOND), [second]),
        (Wanted(since=T0 + timedelta(seconds=1)), []),
    ):  # fmt: skip
        assert list(store.listed(wanted)) == rows, wanted
    assert [row["recipient"] for row in store.trace_number(SENDER, 2)] == [FIRST, SECOND]
    assert [row["id"] for row in store.whole(str(third["id"]))] == [third["id"]]
    assert {row["token"] for row in store.by_queue([came.token], ["4ABCDE"])} == {came.token, sent.token}
    assert [row["token"] for row in store.owed_rows(T0 + timedelta(days=1), 10)] == [came.token]
    assert store.held_rows(T0 + timedelta(days=1), 10) == []
    for since in (None, T0):
        counted = store.statistics(T0 + timedelta(hours=1), since)
        assert (counted["owed"], counted["waiting"], counted["overdue"]) == (1, 1, 1)
        assert [(c["peer"], c["state"], c["count"]) for c in counted["counts"]] == [("north", "waiting", 1), ("tyntec", "recorded", 2)]
    assert store.hurry([first["id"], third["id"]], T0).result(30) == 1
    assert states(store, sent) == [("overdue", None)]
    assert "awaited" in str(store.forget(sent.token).result(30))
    assert store.forget(sent.token, force=True).result(30) is None
    assert store.message(sent.token) is None
    assert whats(store, sent.token) == []


def test_a_store_for_threads_that_are_not_pythons_reads_in_its_own(store_url: str) -> None:
    with Store.open(store_url, busy_seconds=1, reading_threads=2) as store:
        names: set[str] = set()

        def query(connection: Any) -> None:
            names.add(threading.current_thread().name)

        with ThreadPoolExecutor(8, "caller") as pool:
            for done in [pool.submit(store._read, query) for _ in range(20)]:
                done.result(30)
        assert all(name.startswith("mm4-store-reader") for name in names)
        assert 1 <= len(names) <= 2
        message = kept(store, mail())
        assert store.message(message.token) is not None
        with pytest.raises(StoreError, match="boom"):
            store._read(lambda connection: (_ for _ in ()).throw(ValueError("boom")))
    with pytest.raises(StoreError, match="closed"):
        store.message(message.token)


def test_a_read_that_hangs_in_its_thread_is_given_up(tmp_path: Path) -> None:
    held = threading.Event()
    with Store.open(f"sqlite:///{tmp_path}/mm4.db", busy_seconds=0.1, reading_threads=1) as store:
        with pytest.raises(StoreError, match="not read within"):
            store._read(lambda connection: held.wait(30))
        held.set()

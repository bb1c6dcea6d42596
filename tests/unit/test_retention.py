"""What is old leaves the store: all of it, nothing that is open, and never so much at once that anybody waits."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text

from cluster import execute, plans
from mm4.postfix import purger
from mm4.postfix.purger import Purger
from mm4.protocol.transaction import Answer, Direction, Message, State, Transaction
from mm4.store import Store
from mm4.store import retention as module
from mm4.store.database import Role
from mm4.store.retention import LOOK, ROWS, WALKS, Ages, look, remove
from mm4.store.schema import events, messages, metadata, transactions
from mm4.store.upkeep import note

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
KEPT = timedelta(days=90)
OLD = NOW - KEPT - timedelta(seconds=1)
YOUNG = NOW - KEPT + timedelta(seconds=1)
AGES = Ages.of(NOW, KEPT)
REQ = "MM4_forward.REQ"
SENDER, FIRST = "+447700900101", "+447700900102"
ANSWER = Answer("system@mmsc.peer.example", "system@mms.example", "MM4_forward.RES", "Ok", b"X-Mms-3GPP: 1\r\n\r\n")
SOURCES = Path(__file__).parents[2]


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url, busy_seconds=5, charging=True) as opened:
        yield opened


def kept(store: Store, at: datetime, *recipients: str, **values: Any) -> str:
    """A message that is settled: Postfix has it, nobody waits."""
    token = secrets.token_hex(16)
    state = values.pop("state", State.ACCEPTED)
    due_at = values.pop("due_at", None)
    rows = tuple(
        Transaction(f"t-{token}", f"m-{token}", SENDER, recipient, state=state, ack_requested=True, due_at=due_at)
        for recipient in recipients or (FIRST,)
    )
    standard = {"direction": Direction.OUT, "peer": "north", "type": REQ, "queue_id": "4A", "host": "gw", "accepted_at": at}
    store.record(Message(token=token, recorded_at=at, transactions=rows, **{**standard, **values})).result(30)
    return token


def purge(store: Store, ages: Ages = AGES) -> dict[str, int]:
    """Everything that is old, as the purger does it; gives the rows that went, by table."""
    rows: dict[str, int] = {}
    for walk in WALKS:
        after = None
        while True:
            found = store.outdated(walk, ages, after)
            keys = found.keys
            while keys:
                removed = store.purge(walk, keys, ages).result(30)
                assert sum(removed.rows.values()) <= ROWS
                rows = {table: rows.get(table, 0) + removed.rows.get(table, 0) for table in {**rows, **removed.rows}}
                keys = keys[removed.done :]
            after = found.after
            if after is None:
                break
    return rows


def counted(url: str) -> dict[str, int]:
    return {table: execute(url, f"SELECT count(*) FROM {table}")[0][0] for table in metadata.tables}


def fill(store: Store, at: datetime) -> None:
    """A row of every kind of what is over: of a life with all that can happen, and of what belongs to no message."""
    token = kept(store, at, accepted_at=None, state=State.RECORDED, digest="d", size=1, source="local")
    store.accepted(token, at).result(30)
    store.receive_answer("north", "MM4_forward.RES", f"t-{token}", None, "Ok", None, at, "4B", "gw").result(30)
    store.event(token, at, "expired", "4A", "of the message as a whole").result(30)
    store.receive_answer("north", "MM4_forward.RES", "t-none", None, "Ok", None, at, "4B", "gw").result(30)
    store.bounced(secrets.token_hex(16), None, "5.1.1", "unknown", at, "4C").result(30)
    file = store.charges.claim("gw", "/cdr", "csv", 2, timedelta(0), at).result(30)
    assert file is not None
    store.charges.written(file, "1:1", at).result(30)
    store.charges.closed(file, at).result(30)

    def behind(connection: Any) -> None:
        note(connection, at, "store restored", "from a backup")
        # Over once its moment has come, however long ago that was.
        values = {"key": f"k-{token}", "until": at + KEPT, "used": 1}
        connection.execute(insert(metadata.tables["limits"]).values(values))

    store._write(behind).result(30)


def test_every_table_that_grows_is_emptied_of_what_is_old_and_of_nothing_else(store: Store, store_url: str) -> None:
    empty = counted(store_url)
    fill(store, YOUNG)
    young = counted(store_url)
    fill(store, OLD)
    both = counted(store_url)
    # A new table has to be filled here, and walked there.
    assert all(both[table] > young[table] > empty[table] for table in metadata.tables), both
    rows = purge(store)
    assert set(rows) == set(metadata.tables)
    assert counted(store_url) == young
    assert purge(store) == {}


def test_the_page_for_operators_says_of_every_table_what_removes_its_rows() -> None:
    page = (SOURCES / "docs/store.md").read_text("utf-8").partition("\n## What leaves the store")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", page, re.M)) == sorted(metadata.tables)


@pytest.mark.parametrize(
    "values",
    [
        {"accepted_at": None, "state": State.RECORDED},
        {"accepted_at": None, "state": State.REFUSED, "answer": ANSWER, "direction": Direction.IN},
        {"answer": ANSWER, "direction": Direction.IN},
        {"answer": ANSWER, "direction": Direction.IN, "reply_to": "mmsc@mms.example"},
        {"state": State.WAITING},
        {"state": State.WAITING, "due_at": NOW},
        {"state": State.OVERDUE, "due_at": NOW},
        {"state": State.FAILED, "due_at": NOW},
        {"state": State.ANSWERED, "due_at": NOW},
    ],
    ids=["token in the queue", "refusal not answered", "RES owed", "RES waits for another's word", "RES awaited",
         "RES due", "to be sent again", "originator not told", "error that may pass"],
)  # fmt: skip
def test_what_is_open_stays_until_it_is_settled_or_twice_as_old(store: Store, values: dict[str, Any]) -> None:
    token = kept(store, OLD, **values)
    other = kept(store, OLD, FIRST, "+447700900103", **values)
    store.event(token, OLD, "noted").result(30)
    assert purge(store) == {}
    # Behind the look's back: what was settled when it was found, and is open again.
    assert store.purge("messages", [token], AGES).result(30).rows == {}
    assert store.message(token) is not None
    later = Ages.of(NOW + KEPT, KEPT)
    assert purge(store, later)["messages"] == 2
    assert store.message(token) is store.message(other) is None


def test_what_is_given_up_or_over_goes(store: Store) -> None:
    for state in (State.OVERDUE, State.FAILED, State.BOUNCED, State.ANSWERED, State.DUPLICATE, State.SUPPRESSED, State.REFUSED):
        kept(store, OLD, state=state)
    kept(store, OLD, answer=ANSWER, answered_at=OLD)
    assert purge(store)["messages"] == 8


def test_records_that_nobody_has_billed_stay(store: Store, store_url: str) -> None:
    token = kept(store, OLD, accepted_at=None, state=State.RECORDED, source="local")
    store.answered(token, OLD, None).result(30)
    store.receive_answer("north", "MM4_forward.RES", f"t-{token}", None, "Ok", None, OLD, "4B", "gw").result(30)
    records = counted(store_url)["charges"]
    assert records
    assert "charges" not in purge(store)
    file = store.charges.claim("gw", "/cdr", "csv", records, timedelta(0), OLD).result(30)
    assert file is not None
    # Claimed, and not on disk under its name.
    assert purge(store) == {}
    store.charges.closed(file, OLD).result(30)
    assert purge(store) == {"charges": records, "cdr_files": 1}


def test_a_message_of_any_size_goes_in_transactions_of_a_bounded_number_of_rows(store: Store, store_url: str) -> None:
    token = kept(store, OLD, *(f"+4477009{number:05}" for number in range(3 * ROWS)))
    store.bounced(token, None, "5.1.1", "unknown", OLD, "4C").result(30)
    for _ in range(ROWS):
        store.event(token, OLD, "noted")
    store.event(token, OLD, "noted").result(30)
    keys = store.outdated("messages", AGES, None).keys
    batches = []
    while keys:
        removed = store.purge("messages", keys, AGES).result(30)
        batches.append(sum(removed.rows.values()))
        keys = keys[removed.done :]
    assert max(batches) <= ROWS
    assert len(batches) == 8
    assert counted(store_url)["events"] == counted(store_url)["transactions"] == counted(store_url)["messages"] == 0


def test_nothing_new_is_begun_after_the_time_is_over(store: Store) -> None:
    tokens = [kept(store, OLD) for _ in range(25)]
    times = iter((0.0, 0.001, 0.006, 0.007))
    removed = store._write(lambda c: remove(c, "messages", tokens, AGES, lambda: next(times))).result(30)
    assert (removed.done, removed.rows) == (20, {"messages": 20, "transactions": 20})
    # One chunk is done however long it takes, or it would never be.
    times = iter((0.0, 9.0, 9.0))
    assert store._write(lambda c: remove(c, "messages", tokens[20:], AGES, lambda: next(times))).result(30).done == 5


def test_no_step_reads_a_table_from_end_to_end(store: Store, store_url: str) -> None:
    for _ in range(3):
        kept(store, OLD)
    fill(store, OLD)
    seen = 0
    for walk in WALKS:
        found = store.outdated(walk, AGES, None)
        # A file's row goes when its records are gone.
        keys = found.keys if walk != "cdr_files" else (1,)
        after: tuple[Any, ...] = {"cdr_files": (0,), "limits": (OLD, "k"), "messages": (OLD, "t")}.get(walk, (OLD, 0))

        def ask(connection: Any, walk: str = walk, keys: tuple[Any, ...] = keys, after: Any = after) -> None:
            look(connection, walk, AGES, None)
            look(connection, walk, AGES, after)
            remove(connection, walk, keys, AGES)

        for statement, plan in plans(store, ask):
            seen += 1
            scans = re.findall(r"SCAN (\w+)(?! USING)|Seq Scan on (\w+)", plan)
            # A row a file of records: few, and no index for them.
            assert not scans or scans == [("cdr_files", "")], (statement, plan)
            # What goes in the order of an index needs no heap of all that is old to find the oldest.
            assert "USE TEMP B-TREE FOR ORDER BY" not in plan, (statement, plan)
            if walk == "messages" and "LIMIT" in statement and "recorded_at <" in statement:
                assert "ix_messages_recorded_at" in plan
            if walk == "events" and "LIMIT" in statement:
                assert "ix_events_alone" in plan
    assert seen >= 20


def test_a_look_goes_on_where_the_last_one_ended_and_passes_what_stays(store: Store) -> None:
    rows = [
        {"token": f"{number:032x}", "direction": "out", "peer": "north", "type": REQ, "queue_id": "4A", "host": "gw",
         "recorded_at": OLD, "accepted_at": None if number < LOOK else OLD} for number in range(LOOK + 3)
    ]  # fmt: skip
    store._write(lambda c: c.execute(insert(messages), rows)).result(30)
    found = store.outdated("messages", AGES, None)
    assert (found.keys, found.after) == ((), (OLD, f"{LOOK - 1:032x}"))
    found = store.outdated("messages", AGES, found.after)
    assert (len(found.keys), found.after) == (3, None)


def test_on_postgresql_one_host_removes_at_a_time_and_passes_rows_that_another_has(request: Any) -> None:
    url = request.getfixturevalue("cluster").database()
    with Store.open(url) as store, store._database.engine("migrator").connect() as other:
        tokens = sorted(kept(store, OLD) for _ in range(4))
        other.execute(text("SELECT token FROM messages WHERE token = :t FOR UPDATE"), {"t": tokens[0]})
        assert store.purge("messages", tokens[:2], AGES).result(30).rows == {"messages": 1, "transactions": 1}
        other.rollback()
        other.execute(text("SELECT id FROM transactions WHERE token = :t FOR UPDATE"), {"t": tokens[0]})
        # Nor is a neighbour's waited for, of which a timer writes just now.
        assert store.purge("messages", tokens, AGES).result(30).rows == {"messages": 2, "transactions": 2}
        other.rollback()
        other.execute(text(f"SELECT pg_advisory_xact_lock({module._ADVISORY_LOCK})"))
        removed = store.purge("messages", tokens, AGES).result(30)
        assert (removed.elsewhere, removed.rows) == (True, {})
        other.rollback()
        assert store.purge("messages", tokens, AGES).result(30).rows == {"messages": 1, "transactions": 1}


def test_only_what_may_come_back_after_a_crash_waits_for_no_flush(store: Store, store_url: str) -> None:
    asked = "PRAGMA synchronous" if store_url.startswith("sqlite") else "SHOW synchronous_commit"
    found = {}
    roles: tuple[Role, ...] = ("writer", "purger")
    for role in roles:
        with store._database.engine(role).connect() as connection:
            found[role] = connection.execute(text(asked)).scalar()
    assert found in ({"writer": 2, "purger": 1}, {"writer": "on", "purger": "off"})


# -- the loop


def test_a_pass_removes_all_says_so_once_and_pauses(store: Store, store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mm4.timers")
    for _ in range(ROWS):
        kept(store, OLD)
    young = kept(store, YOUNG)

    async def body() -> None:
        # The first is killed after a batch; the second knows nothing of it.
        await Purger(store, lambda: NOW, KEPT).purge()
        assert 1 < counted(store_url)["messages"] < ROWS + 1
        again = Purger(store, lambda: NOW, KEPT, pause=77)
        while await again.purge() != 77:
            pass

    asyncio.run(body())
    assert store.message(young) is not None
    assert counted(store_url)["messages"] == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"retention=removed messages=\d+ transactions=\d+", line)


def test_one_that_is_behind_takes_more_of_the_time_and_says_so(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 10)
    monkeypatch.setattr(module, "_LOOKS", {key: query.limit(10) for key, query in module._LOOKS.items()})
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(purger.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
    for _ in range(31):
        kept(store, OLD - purger.BEHIND)
    for _ in range(20):
        kept(store, OLD)

    async def body() -> None:
        one = Purger(store, lambda: NOW, KEPT, pause=77)
        begun = time.monotonic()
        last = await one.purge()
        took = time.monotonic() - begun
        # One batch after the other, until what is left is not a day too old.
        assert len(pauses) >= 3
        assert sum(pauses) < took
        (line,) = [record.getMessage() for record in caplog.records]
        assert line == "retention=behind at=2026-08-23 kept_since=2026-08-24"
        # From there on as ever: one batch, and four times as long nothing.
        seen = len(pauses)
        assert last > 0
        assert await one.purge() > 0
        assert len(pauses) == seen

    asyncio.run(body())


def test_nothing_is_added_to_a_log_that_cannot_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purger, "LOG_PAGES", 40)
    url = f"sqlite:///{tmp_path}/mm4.db"
    with Store.open(url) as store:
        for number in range(300):
            kept(store, OLD + timedelta(microseconds=number % 2))

        async def steps(one: Purger, most: int) -> list[float]:
            return [await one.purge() for _ in range(most)]

        one = Purger(store, lambda: NOW, KEPT, pause=77)
        # A backup reads one moment of the store, and nothing after it can leave the log.
        with store._database.engine("reader").connect() as reader:
            reader.execute(text("SELECT count(*) FROM messages")).scalar()
            waits = asyncio.run(steps(one, 60))
            assert waits[-1] == 77
            left = counted(url)["messages"]
            assert left > 100
            grown = (tmp_path / "mm4.db-wal").stat().st_size
            asyncio.run(steps(one, 3))
            assert counted(url)["messages"] == left
        while counted(url)["messages"]:
            asyncio.run(steps(one, 1))
        assert (tmp_path / "mm4.db-wal").stat().st_size <= max(grown, 1100 * 4096)


def bulk(url: str, number: int) -> None:
    """So many old messages with a transaction and two events each."""
    with Store.open(url) as store, store._database.engine("migrator").begin() as connection:
        token = [f"{n * 2654435761 % 2**32:032x}" for n in range(number)]
        mail = {"direction": "out", "peer": "north", "type": REQ, "queue_id": "4A", "host": "gw", "recorded_at": OLD, "accepted_at": OLD}
        connection.execute(insert(messages), [{"token": t, **mail} for t in token])
        row = {
            "peer": "north", "direction": "out", "type": REQ, "originator": SENDER, "recipient": FIRST, "state": "answered",
            "ack_requested": True, "delivery_report": False, "read_reply": False, "updated_at": OLD,
        }  # fmt: skip
        ids = [{"id": n, "token": t, "transaction_id": t, "message_id": t} for n, t in enumerate(token, 1)]
        connection.execute(insert(transactions), [{**row, **one} for one in ids])
        for what in ("answer received", "repeated answer"):
            life = [{"transaction_row": one["id"], "token": one["token"], "at": OLD, "what": what} for one in ids]
            connection.execute(insert(events), life)


@pytest.mark.slow
def test_of_a_hundred_thousand_rows_some_go_while_others_write(tmp_path: Path) -> None:
    """Deterministic: rows of a transaction, the size of the log. The time is held with much room, for a busy machine."""
    url = f"sqlite:///{tmp_path}/mm4.db"
    bulk(url, 25_000)
    size = (tmp_path / "mm4.db").stat().st_size
    batches: list[module.Removed] = []
    log: list[int] = []

    class Watched:
        def __init__(self, store: Store) -> None:
            self.outdated = store.outdated
            self._store = store

        def purge(self, walk: str, keys: Any, ages: Ages) -> Any:
            future = self._store.purge(walk, keys, ages)
            future.add_done_callback(lambda done: batches.append(done.result()))
            return future

        def checkpoint(self) -> int:
            log.append(self._store.checkpoint())
            return log[-1]

    def work(store: Store, done: threading.Event) -> None:
        async def body() -> None:
            one = Purger(Watched(store), lambda: NOW, KEPT, pause=77)
            while len(batches) < 200:
                await one.purge()

        asyncio.run(body())
        done.set()

    with Store.open(url) as purging, Store.open(url) as milter:
        done = threading.Event()
        thread = threading.Thread(target=work, args=(purging, done))

        def commit() -> float:
            begun = time.monotonic()
            kept(milter, NOW)
            return time.monotonic() - begun

        alone = [commit() for _ in range(100) if not done.wait(0.005)]
        thread.start()
        waited = []
        while not done.wait(0.005):
            waited.append(commit())
        thread.join(60)
        gone = sum(batch.done for batch in batches)
        assert counted(url)["messages"] == 25_000 - gone + len(waited) + len(alone)
        assert sum(sum(batch.rows.values()) for batch in batches) == 4 * gone
    assert max(sum(batch.rows.values()) for batch in batches) <= ROWS
    assert max(log) <= purger.LOG_PAGES
    # What went is room for what comes.
    assert (tmp_path / "mm4.db").stat().st_size <= size + 200 * 4096
    # One in a hundred waits for something else where the machine is busy: of the half it must not be much worse.
    late, usual = statistics.median(waited), statistics.median(alone)
    assert late < max(0.06, 3 * usual), (late, usual)
